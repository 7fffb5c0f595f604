//! What a Workload API sends, read byte by byte as it comes, so that a private key goes straight to secret memory.

use std::{fmt, mem};

use crate::{
    bounded::foreign_text,
    budget,
    identity::SpiffeId,
    wire::{MAX_ANSWER, Overlong, Varint},
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

/// Kinds of fields ("Encoding", Message structure).
const NUMBER: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FOUR_BYTES: u64 = 5;

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
    /// What stands before a message: whether it is compressed, and its length ("gRPC over HTTP/2").
    prefix: [u8; 5],
    seen: usize,
    left: usize,
    reader: Reader,
    /// The last whole message that nobody has had yet.
    told: Option<Told>,
}

impl Receiver {
    pub(super) fn new(wanted: Option<SpiffeId>) -> Self {
        Self { wanted, prefix: [0; 5], seen: 0, left: 0, reader: Reader::default(), told: None }
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
            while self.seen < self.prefix.len() {
                let Some((&byte, rest)) = content.split_first() else { return Ok(()) };
                self.prefix[self.seen] = byte;
                (self.seen, content) = (self.seen + 1, rest);
                let [compressed, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                if compressed != 0 {
                    return Err(COMPRESSED);
                }
            }
            if self.left > MAX_ANSWER {
                return Err(TOO_LARGE);
            }
            // Two of them are not held at the same time.
            self.told = None;
            let (message, rest) = content.split_at(self.left.min(content.len()));
            self.reader.read(message, self.wanted.as_ref())?;
            (self.left, content) = (self.left - message.len(), rest);
            if self.left > 0 {
                return Ok(());
            }
            self.told = Some(mem::take(&mut self.reader).end()?);
            self.seen = 0;
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
                self.field = key >> 3;
                match (self.field, key & 7) {
                    (0, _) => return Err(MALFORMED),
                    (_, LENGTH_DELIMITED) => self.state = State::Length(Varint::default()),
                    // No field that counts is of another kind.
                    (_, NUMBER) => (self.field, self.state) = (u64::MAX, State::Number),
                    (_, EIGHT_BYTES) => return self.skip(8, wanted),
                    (_, FOUR_BYTES) => return self.skip(4, wanted),
                    _ => return Err(MALFORMED),
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

    /// Passes over a field of this size.
    fn skip(&mut self, size: usize, wanted: Option<&SpiffeId>) -> Result<(), &'static str> {
        self.field = u64::MAX;
        self.announce(size)?;
        self.content(size, wanted);
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

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use sds_shim_proto::spiffe::{X509svid, X509svidResponse};

    fn svid(id: &str, byte: u8) -> X509svid {
        let [x509_svid, x509_svid_key, bundle] = [700, 138, 3000].map(|length| vec![byte; length].into());
        X509svid { spiffe_id: id.to_owned(), x509_svid, x509_svid_key, bundle, hint: "hint".to_owned() }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    fn response() -> X509svidResponse {
        let federated_bundles =
            [("spiffe://other".to_owned(), vec![7; 500].into()), ("third".to_owned(), vec![].into())];
        X509svidResponse {
            svids: vec![svid("spiffe://td/first", 1), svid("spiffe://td/second", 2)],
            crl: vec![vec![9; 400].into()],
            federated_bundles: federated_bundles.into_iter().collect(),
        }
    }

    fn told(wanted: Option<&str>, stream: &[u8], size: usize) -> Result<Option<Told>, &'static str> {
        let mut receiver = Receiver::new(wanted.map(|id| SpiffeId::parse(id).unwrap()));
        for portion in stream.chunks(size) {
            let mut portion = portion.to_vec();
            let taken = receiver.take(&mut portion);
            assert!(portion.iter().all(|byte| *byte == 0), "it is left in HTTP/2's buffer");
            taken?;
        }
        Ok(receiver.told())
    }

    #[test]
    fn a_message_is_read_in_whatever_portions() {
        // Fields of others, inside and outside: a number, eight bytes, a text, four bytes.
        let others = [0x50, 0xff, 0x01, 0x59, 1, 2, 3, 4, 5, 6, 7, 8, 0x62, 2, b'a', b'b', 0x6d, 1, 2, 3, 4];
        let message = [&others[..], &response().encode_to_vec(), &others].concat();
        let stream = [framed(&[]), framed(&message)].concat();
        for size in [1, 2, 3, 100, stream.len()] {
            for (wanted, byte) in [(None, 1), (Some("spiffe://td/first"), 1), (Some("spiffe://td/second"), 2)] {
                let told = told(wanted, &stream, size).unwrap().unwrap();
                let found = told.svid.unwrap();
                assert_eq!(found.id, wanted.unwrap_or("spiffe://td/first").as_bytes());
                assert!(found.chain == [byte; 700] && found.bundle == [byte; 3000]);
                assert!(found.key.bytes() == [byte; 138]);
                assert_eq!(told.ids, ["spiffe://td/first", "spiffe://td/second"]);
                assert_eq!(told.bundles, [(b"spiffe://other".to_vec(), vec![7; 500]), (b"third".to_vec(), vec![])]);
            }
        }
        assert!(told(Some("spiffe://td/third"), &stream, 100).unwrap().unwrap().svid.is_none());
        assert!(told(None, &framed(&[]), 1).unwrap().unwrap().svid.is_none());
    }

    #[test]
    fn a_message_that_is_cut_is_none() {
        let message = X509svidResponse { svids: vec![svid("spiffe://td/first", 1)], ..Default::default() };
        let message = message.encode_to_vec();
        for cut in 1..message.len() {
            assert_eq!(told(None, &framed(&message[..cut]), 64).err(), Some(MALFORMED), "after {cut} bytes");
        }
    }

    #[test]
    fn what_is_too_much_or_no_message_is_refused() {
        let large = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
        let bundle = |length| {
            let federated_bundles = [("td".to_owned(), vec![0; length].into())].into_iter().collect();
            framed(&X509svidResponse { federated_bundles, ..Default::default() }.encode_to_vec())
        };
        let name = |length| {
            let svids = vec![X509svid { spiffe_id: "x".repeat(length), ..Default::default() }];
            framed(&X509svidResponse { svids, ..Default::default() }.encode_to_vec())
        };
        let key = X509svid { x509_svid_key: vec![0; MAX_KEY + 1].into(), ..Default::default() };
        let key = X509svidResponse { svids: vec![key], ..Default::default() };
        let many = X509svidResponse { crl: vec![Vec::new().into(); MAX_FIELDS + 1], ..Default::default() };
        for (stream, flaw) in [
            (vec![1, 0, 0, 0, 0], COMPRESSED),
            (large(u32::MAX), TOO_LARGE),
            (bundle(MAX_KEPT), TOO_LARGE),
            (name(MAX_NAME + 1), TOO_LARGE),
            (framed(&key.encode_to_vec()), TOO_LARGE),
            (framed(&many.encode_to_vec()), FIELDS),
            (framed(&[0x00]), MALFORMED),
            (framed(&[0x0b]), MALFORMED),
            // A length that is more than its message has.
            (framed(&[0x0a, 2, 0x0a, 5, 1, 2, 3, 4, 5]), MALFORMED),
            (framed(&[0xff; 11]), MALFORMED),
        ] {
            assert_eq!(told(None, &stream, 1000).err(), Some(flaw));
        }
        assert!(told(None, &bundle(MAX_KEPT - 100), 1000).unwrap().is_some());
        // Whatever is said of identities that are not wanted takes no room for long.
        let many = X509svidResponse { svids: vec![svid("spiffe://td/other", 1); 150], ..Default::default() };
        assert!(told(Some("spiffe://td/a"), &framed(&many.encode_to_vec()), 1000).unwrap().is_some());
    }

    #[test]
    fn a_key_cannot_be_printed() {
        let stream = framed(&response().encode_to_vec());
        let told = told(None, &stream, 100).unwrap().unwrap();
        assert!(format!("{:?}", told.svid.unwrap()).contains("key: KeyDer(138 bytes)"));
    }
}
