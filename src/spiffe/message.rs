//! What a Workload API sends, read byte by byte as it comes, so that a private key goes straight to secret memory.

use std::{fmt, mem};

use crate::{
    bounded::foreign_text,
    budget,
    identity::SpiffeId,
    wire::{Content, MAX_ANSWER, Overlong, Prefix, Varint, field},
};

/// Bytes of a message that are kept, beside the key: a chain is a few KiB, and a bundle of a hundred anchors some hundred.
const MAX_KEPT: usize = 512 * 1024;
/// Bytes of a SPIFFE ID (section 2.3 of its specification), and of the name of a trust domain with what may stand before.
const MAX_NAME: usize = 2048;
/// Bytes of a private key: one of RSA with 8,192 bits has 4,700.
const MAX_KEY: usize = 8 * 1024;
/// Fields that a message may have; each bundle takes three.
const MAX_FIELDS: usize = 1024;
/// Identities that are told where none is the wanted one, and their characters.
const MOST_IDS: usize = 4;
const MOST_TOLD: usize = 256;

const COMPRESSED: &str = "the message is compressed";
const TOO_LARGE: &str = "the message is too large: the limits are 1,280 KiB, 512 KiB of one identity and all bundles, 8 KiB for \
                         a key and 2 KiB for a name";
const NO_ROOM: &str = "not enough arena memory for the message; raise SDS_SHIM_ARENA_KIB";
const FIELDS: &str = "the message has more than 1,024 fields";
const MALFORMED: &str = "the message is not an X509SVIDResponse";

/// Field numbers of `X509SVIDResponse`, of `X509SVID` and of an entry of a map.
const SVIDS: u64 = 1;
const FEDERATED_BUNDLES: u64 = 3;
const SPIFFE_ID: u64 = 1;
const CHAIN: u64 = 2;
const KEY: u64 = 3;
const BUNDLE: u64 = 4;
const ENTRY_KEY: u64 = 1;
const ENTRY_VALUE: u64 = 2;

/// One message, of which nothing is verified.
#[derive(Debug, Default)]
pub struct Told {
    /// The wanted identity, if it is there.
    pub svid: Option<Svid>,
    /// Some of the identities in it, fit for one line.
    pub ids: Vec<String>,
    /// Trust bundles of other trust domains: the name of each, and its certificates in DER, one after the other.
    pub bundles: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One identity of the workload.
#[derive(Debug, Default)]
pub struct Svid {
    /// Its SPIFFE ID.
    pub id: Vec<u8>,
    /// Its certificates in DER, leaf first, one after the other.
    pub chain: Vec<u8>,
    /// The leaf's private key.
    pub key: KeyDer,
    /// The trust anchors of its trust domain in DER, one after the other.
    pub bundle: Vec<u8>,
}

/// A private key as PKCS#8 in DER. It lies in secret memory, cannot be printed, and is wiped when it is dropped.
#[derive(Default)]
pub struct KeyDer(Vec<u8>);

impl KeyDer {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyDer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDer({} bytes)", self.0.len())
    }
}

/// Takes the content of a stream's DATA frames, and wipes it.
pub(super) struct Receiver {
    wanted: Option<SpiffeId>,
    /// What stands before the present message, and what of that is still to come.
    prefix: Prefix,
    left: usize,
    reader: Reader,
    /// The last whole message that nobody has had yet.
    told: Option<Told>,
}

impl Receiver {
    pub(super) fn new(wanted: Option<SpiffeId>) -> Self {
        Self { wanted, prefix: Prefix::default(), left: 0, reader: Reader::default(), told: None }
    }

    /// The last whole message, once.
    pub(super) fn told(&mut self) -> Option<Told> {
        self.told.take()
    }

    /// # Errors
    /// Why nothing more of this stream can be used.
    pub(super) fn take(&mut self, content: &mut [u8]) -> Result<(), &'static str> {
        let taken = self.read(content);
        content.fill(0);
        taken
    }

    fn read(&mut self, mut content: &[u8]) -> Result<(), &'static str> {
        loop {
            let taken = self.prefix.take(content);
            content = &content[taken..];
            let Some((compressed, length)) = self.prefix.whole() else { return Ok(()) };
            if taken > 0 {
                self.left = length;
                // Two of them are not held at the same time.
                self.told = None;
            }
            match length {
                _ if compressed != 0 => return Err(COMPRESSED),
                length if length > MAX_ANSWER => return Err(TOO_LARGE),
                _ => {}
            }
            let (message, rest) = content.split_at(self.left.min(content.len()));
            self.reader.read(message, self.wanted.as_ref())?;
            (self.left, content) = (self.left - message.len(), rest);
            if self.left > 0 {
                return Ok(());
            }
            self.told = Some(mem::take(&mut self.reader).end()?);
            self.prefix = Prefix::default();
        }
    }
}

/// Reads one `X509SVIDResponse`.
#[derive(Default)]
struct Reader {
    state: State,
    /// The message inside of which we are, if we are.
    inner: Option<Inner>,
    /// The field in which we are.
    field: u64,
    fields: usize,
    /// Bytes of all that is kept.
    size: usize,
    svid: Svid,
    entry: (Vec<u8>, Vec<u8>),
    told: Told,
}

struct Inner {
    /// The field that it is.
    of: u64,
    /// Bytes of it that are not announced yet as a field's content.
    left: usize,
}

/// Where we are in a message.
#[derive(Clone, Copy)]
enum State {
    /// In the key of a field, of which this is known.
    Key(Varint),
    /// In the length of a field.
    Length(Varint),
    /// In a number.
    Number,
    /// In the content of a field with so many bytes left.
    Content(usize),
}

impl Default for State {
    fn default() -> Self {
        Self::Key(Varint::default())
    }
}

impl Reader {
    fn read(&mut self, mut message: &[u8], wanted: Option<&SpiffeId>) -> Result<(), &'static str> {
        while let Some((&byte, rest)) = message.split_first() {
            if let State::Content(left) = self.state {
                let (content, after) = message.split_at(left.min(message.len()));
                if let Some(kept) = self.kept() {
                    kept.extend_from_slice(content);
                } else if self.is_key() {
                    locked::secretly(|| self.svid.key.0.extend_from_slice(content));
                }
                message = after;
                self.content(left - content.len(), wanted);
                continue;
            }
            message = rest;
            self.announce(1)?;
            self.step(byte, wanted)?;
        }
        Ok(())
    }

    /// So many bytes belong to the message in which we are.
    fn announce(&mut self, bytes: usize) -> Result<(), &'static str> {
        if let Some(inner) = &mut self.inner {
            inner.left = inner.left.checked_sub(bytes).ok_or(MALFORMED)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, wanted: Option<&SpiffeId>) -> Result<(), &'static str> {
        match &mut self.state {
            State::Key(key) => {
                let Some(key) = key.step(byte).map_err(|Overlong| MALFORMED)? else { return Ok(()) };
                self.fields += 1;
                if self.fields > MAX_FIELDS {
                    return Err(FIELDS);
                }
                let (number, content) = field(key).ok_or(MALFORMED)?;
                // No field that counts is of another kind.
                (self.field, self.state) = match content {
                    Content::Delimited => (number, State::Length(Varint::default())),
                    Content::Number => (u64::MAX, State::Number),
                    Content::Bytes(size) => (u64::MAX, State::Content(size)),
                };
                if let Content::Bytes(size) = content {
                    self.announce(size)?;
                }
            }
            State::Length(length) => {
                let Some(length) = length.step(byte).map_err(|Overlong| MALFORMED)? else { return Ok(()) };
                let length = usize::try_from(length).map_err(|_| MALFORMED)?;
                if self.inner.is_none() && [SVIDS, FEDERATED_BUNDLES].contains(&self.field) {
                    (self.inner, self.state) = (Some(Inner { of: self.field, left: length }), State::default());
                    self.end_inner(wanted);
                    return Ok(());
                }
                self.announce(length)?;
                self.reserve(length)?;
                self.content(length, wanted);
            }
            State::Number if byte < 0x80 => self.content(0, wanted),
            State::Number | State::Content(_) => {}
        }
        Ok(())
    }

    /// There are so many bytes left in the field.
    fn content(&mut self, left: usize, wanted: Option<&SpiffeId>) {
        if left > 0 {
            self.state = State::Content(left);
            return;
        }
        self.state = State::default();
        self.end_inner(wanted);
    }

    /// Keeps the message in which we are, if it is over.
    fn end_inner(&mut self, wanted: Option<&SpiffeId>) {
        let Some(Inner { of, left: 0 }) = self.inner else { return };
        self.inner = None;
        if of == FEDERATED_BUNDLES {
            self.told.bundles.push(mem::take(&mut self.entry));
            return;
        }
        let svid = mem::take(&mut self.svid);
        let size = svid.id.len() + svid.chain.len() + svid.bundle.len();
        if self.told.ids.len() < MOST_IDS {
            self.told.ids.push(foreign_text(&String::from_utf8_lossy(&svid.id), MOST_TOLD));
        }
        let is_wanted = wanted.is_none_or(|wanted| wanted.as_str().as_bytes() == svid.id);
        if is_wanted && self.told.svid.is_none() {
            self.told.svid = Some(svid);
        } else {
            self.size = self.size.saturating_sub(size);
        }
    }

    fn is_key(&self) -> bool {
        matches!((&self.inner, self.field), (Some(Inner { of: SVIDS, .. }), KEY))
    }

    /// What the content of the field goes to, if it is kept and no key.
    fn kept(&mut self) -> Option<&mut Vec<u8>> {
        match (self.inner.as_ref()?.of, self.field) {
            (SVIDS, SPIFFE_ID) => Some(&mut self.svid.id),
            (SVIDS, CHAIN) => Some(&mut self.svid.chain),
            (SVIDS, BUNDLE) => Some(&mut self.svid.bundle),
            (FEDERATED_BUNDLES, ENTRY_KEY) => Some(&mut self.entry.0),
            (FEDERATED_BUNDLES, ENTRY_VALUE) => Some(&mut self.entry.1),
            _ => None,
        }
    }

    /// Makes room for the content of the field; of fields that come twice the last counts.
    fn reserve(&mut self, length: usize) -> Result<(), &'static str> {
        if self.is_key() {
            if length > MAX_KEY {
                return Err(TOO_LARGE);
            }
            self.svid.key = KeyDer(locked::secretly(|| Vec::with_capacity(length)));
            return Ok(());
        }
        let size = self.size.saturating_add(length);
        let is_name = matches!(
            (&self.inner, self.field),
            (Some(Inner { of: SVIDS, .. }), SPIFFE_ID) | (Some(Inner { of: FEDERATED_BUNDLES, .. }), ENTRY_KEY)
        );
        let Some(kept) = self.kept() else { return Ok(()) };
        match size {
            MAX_KEPT.. => return Err(TOO_LARGE),
            _ if is_name && length > MAX_NAME => return Err(TOO_LARGE),
            // As it is, and as what is made from it.
            _ if !budget::has_room_for_file(length, 2) => return Err(NO_ROOM),
            _ => *kept = Vec::with_capacity(length),
        }
        self.size = size;
        Ok(())
    }

    fn end(self) -> Result<Told, &'static str> {
        match self {
            Self { state: State::Key(key), inner: None, told, .. } if !key.has_begun() => Ok(told),
            _ => Err(MALFORMED),
        }
    }
}

/// What a stream tells last that comes in pieces of this size; for the tests and the fuzz target.
#[cfg(any(test, fuzzing))]
pub(super) fn in_pieces(wanted: Option<SpiffeId>, stream: &[u8], size: usize) -> Result<Option<Told>, &'static str> {
    let mut receiver = Receiver::new(wanted);
    for piece in stream.chunks(size) {
        let mut piece = piece.to_vec();
        let taken = receiver.take(&mut piece);
        assert!(piece.iter().all(|byte| *byte == 0), "it is left in HTTP/2's buffer");
        taken?;
    }
    Ok(receiver.told())
}

#[cfg(test)]
mod tests;
