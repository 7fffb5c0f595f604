//! Trust anchors as they come: from a text or a file, one at a time, so that a bundle of hundreds takes no more than what
//! is kept of it.

mod blocks;

use std::{
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use openssl::{sha::sha256, x509::X509};

use super::{
    bundle::{BadAnchor, BadAnchors, TrustAnchor, TrustBundle},
    pem::{self, Block, PemError, UNPARSABLE},
    recent,
    validity::element,
};
use crate::{bounded, budget, clock::rfc3339};
use blocks::Blocks;

/// Bytes of a file: more than any bundle has, comments included.
const MAX_FILE: usize = 8 * 1024 * 1024;

/// Anchors that are in use: whoever reads one of them again shares it.
static IN_USE: Mutex<Vec<Weak<TrustAnchor>>> = Mutex::new(Vec::new());

/// What is read, and what becomes of it.
pub(super) struct Reading<'a> {
    /// Unix seconds.
    pub(super) now: i64,
    /// Whether there is room to keep one more of this many bytes.
    pub(super) room: fn(usize) -> bool,
    /// Bytes that all anchors which are in use may take.
    pub(super) most: usize,
    /// Whether they are kept, or only looked at.
    pub(super) keep: bool,
    /// Shown each that can be used, in its parsed form.
    pub(super) look: Option<&'a mut dyn FnMut(&X509)>,
}

/// A certificate on its way to be an anchor: it may be in use already.
pub(super) enum Candidate {
    Block(Block),
    Known(Arc<TrustAnchor>),
}

impl Candidate {
    /// One that is in use already, if it is one of those.
    pub(super) fn new(block: Block) -> Self {
        let digest = sha256(block.der());
        in_use(&digest).map_or(Self::Block(block), Self::Known)
    }

    pub(super) fn der(&self) -> &[u8] {
        match self {
            Self::Block(block) => block.der(),
            Self::Known(anchor) => anchor.der(),
        }
    }
}

/// How a file begins, up to the end of a block and without what is no ASCII: enough to see what form it has. Nothing
/// where it cannot be read, or there is no room for it.
pub(super) fn start_of(file: &Path) -> String {
    const START: u64 = 16 * 1024;
    let has_room = budget::has_room_for_file(START as usize, 2);
    let opened = bounded::open(file, MAX_FILE).ok().filter(|_| has_room);
    let mut bytes = Vec::new();
    let read = opened.map(|opened| opened.into_reader().take(START).read_to_end(&mut bytes));
    let is_cut = matches!(read, Some(Ok(read)) if read as u64 == START);
    bytes.retain(u8::is_ascii);
    let mut text = String::from_utf8(bytes).unwrap_or_default();
    if let Some(end) = text.rfind(pem::END).filter(|_| is_cut) {
        text.truncate(end + pem::END.len());
    }
    text
}

/// What the CA answered, as far as it came: of each element its certificates.
#[derive(Default)]
pub struct Answer {
    elements: Vec<Vec<Result<Candidate, PemError>>>,
    blocks: Blocks,
}

impl Answer {
    /// Of these elements.
    pub fn of(elements: &[String]) -> Self {
        let mut answer = Self::default();
        for element in elements {
            answer.begin();
            answer.read(element.as_bytes());
        }
        answer.end();
        answer
    }

    /// The same of a chain and the trust anchors that go with it, as a SPIFFE Workload API tells them: DER, one certificate
    /// after the other.
    pub fn of_der(chain: &[u8], anchors: &[u8]) -> Self {
        let mut answer = Self::default();
        for element in [chain, anchors] {
            answer.elements.push(Vec::new());
            in_der(element).for_each(|found| answer.keep(found));
        }
        answer
    }

    /// Elements in it.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Begins with the next element.
    pub fn begin(&mut self) {
        self.end();
        self.blocks = Blocks::default();
        self.elements.push(Vec::new());
    }

    /// Takes the next portion of an element.
    pub fn read(&mut self, portion: &[u8]) {
        const AT_ONCE: usize = 4096;
        for portion in portion.chunks(AT_ONCE) {
            self.blocks.feed(portion);
            while let Some(found) = self.blocks.next() {
                self.keep(found);
            }
        }
    }

    /// Nothing more comes of this element.
    pub fn end(&mut self) {
        if let Some(found) = self.blocks.end() {
            self.keep(found);
        }
    }

    fn keep(&mut self, found: Result<Candidate, PemError>) {
        let Some(element) = self.elements.last_mut() else { return };
        let position = element.len() + 1;
        element.push(match found {
            Ok(Candidate::Block(block)) if !budget::has_room_for_ca_anchor(block.der().len()) => {
                Err(PemError::NoRoom { position })
            }
            found => found,
        });
    }

    /// The elements.
    pub(super) fn into_elements(self) -> Vec<Vec<Result<Candidate, PemError>>> {
        self.elements
    }
}

impl Reading<'_> {
    /// Takes them all; those that cannot be used are told beside the bundle.
    ///
    /// # Errors
    /// When there is none, or none that can be used.
    pub(super) fn read(
        mut self,
        candidates: impl Iterator<Item = Result<Candidate, PemError>>,
    ) -> Result<(TrustBundle, BadAnchors), PemError> {
        let (mut anchors, mut bad, mut usable) = (Vec::new(), BadAnchors::default(), false);
        let mut first_without_room = None;
        for (index, candidate) in candidates.enumerate() {
            let position = index + 1;
            let anchor = match candidate {
                Ok(candidate) if self.keep && !self.has_room(&candidate) => Err(PemError::NoRoom { position }),
                Ok(candidate) => Ok(self.anchor(candidate)),
                Err(error) => Err(error),
            };
            let anchor = match anchor {
                Ok(anchor) => anchor,
                Err(PemError::NoRoom { .. }) => {
                    first_without_room = first_without_room.or(Some(position));
                    let most = budget::for_anchors() / 1024;
                    Err(format!(
                        "does not fit: all anchors may take {most} KiB, half of the arena; raise SDS_SHIM_ARENA_KIB"
                    ))
                }
                Err(PemError::TooLarge { .. }) => Err(pem::TOO_LARGE.to_owned()),
                Err(PemError::Refused { reason, .. }) => Err(format!("{UNPARSABLE} by Envoy: it {reason}")),
                Err(PemError::File(cause)) => return Err(PemError::File(cause)),
                Err(_) => Err(UNPARSABLE.to_owned()),
            };
            match anchor {
                Ok(anchor) => {
                    usable = true;
                    anchors.extend(Some(anchor).filter(|_| self.keep));
                }
                Err(reason) => bad.push(|| BadAnchor { position, reason }),
            }
        }
        match (usable, bad.told().first()) {
            (false, None) => Err(PemError::Empty),
            (true, _) => Ok((TrustBundle::new(anchors), bad)),
            (false, Some(BadAnchor { position, reason })) => Err(match first_without_room {
                Some(position) => PemError::NoRoom { position },
                None => PemError::NoAnchor { position: *position, reason: reason.clone() },
            }),
        }
    }

    /// What is in use already takes no more.
    fn has_room(&self, candidate: &Candidate) -> bool {
        match candidate {
            Candidate::Known(_) => true,
            Candidate::Block(block) => {
                let size = TrustAnchor::size_of(block.der());
                bytes_in_use() + size <= self.most && (self.room)(size)
            }
        }
    }

    fn anchor(&mut self, candidate: Candidate) -> Result<Arc<TrustAnchor>, String> {
        let now = self.now;
        let ended = |end: i64| if end <= now { Err(format!("expired at {}", rfc3339(end))) } else { Ok(()) };
        match candidate {
            Candidate::Known(anchor) => {
                ended(anchor.not_after())?;
                if let Some(look) = &mut self.look {
                    look(&recent::parsed(anchor.der()).ok_or(UNPARSABLE)?);
                }
                Ok(anchor)
            }
            Candidate::Block(block) => {
                let certificate = recent::parsed(block.der()).ok_or(UNPARSABLE)?;
                let anchor = TrustAnchor::new(&certificate, block.into_der())?;
                ended(anchor.not_after())?;
                if let Some(look) = &mut self.look {
                    look(&certificate);
                }
                Ok(if self.keep { share(anchor) } else { Arc::new(anchor) })
            }
        }
    }
}

/// Certificates in DER, one after the other.
pub(super) fn in_der(mut rest: &[u8]) -> impl Iterator<Item = Result<Candidate, PemError>> {
    /// Bytes of the smallest certificate, nearly: whatever is less is none.
    const LEAST: usize = 100;
    /// More than any bundle has; each takes some room wherever it is kept, or why it is not.
    const MOST: usize = 1024;
    let mut position = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() || position == MOST {
            return None;
        }
        position += 1;
        let whole = element(rest).ok().map(|(.., after)| rest.split_at(rest.len() - after.len()));
        let Some((one, after)) = whole.filter(|(one, _)| one.len() >= LEAST) else {
            // Nobody knows where the next one begins.
            rest = &[];
            return Some(Err(PemError::Malformed { position }));
        };
        rest = after;
        Some(match one.len() {
            len if len > pem::MOST_DER => Err(PemError::TooLarge { position }),
            len if !budget::has_room_for_file(len, 1) => Err(PemError::NoRoom { position }),
            _ => pem::der(one.to_vec(), position).map(Candidate::new),
        })
    })
}

/// Bytes of all anchors that are in use.
fn bytes_in_use() -> usize {
    let all = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(Weak::upgrade).map(|anchor| anchor.size()).sum()
}

/// The one of its kind that everybody uses.
fn share(anchor: TrustAnchor) -> Arc<TrustAnchor> {
    if let Some(known) = in_use(anchor.digest()) {
        return known;
    }
    let anchor = Arc::new(anchor);
    let mut all = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|one| one.strong_count() > 0);
    all.push(Arc::downgrade(&anchor));
    anchor
}

fn in_use(digest: &[u8; 32]) -> Option<Arc<TrustAnchor>> {
    let all = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(Weak::upgrade).find(|anchor| anchor.digest() == digest)
}

/// The certificates of a file, read in portions.
pub(super) fn in_file(path: &Path) -> Result<impl Iterator<Item = Result<Candidate, PemError>>, PemError> {
    const PORTION: usize = 4096;
    let opened = bounded::open(path, MAX_FILE).and_then(bounded::Opened::within_limit);
    let mut from = opened.map_err(|error| PemError::File(bounded::describe(path, &error)))?.into_reader();
    let (mut blocks, path, mut portion, mut over) = (Blocks::default(), path.to_owned(), [0; PORTION], false);
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some(block) = blocks.next() {
                return Some(block);
            }
            if over {
                return None;
            }
            match from.read(&mut portion) {
                Ok(0) => {
                    over = true;
                    return blocks.end();
                }
                Ok(read) => blocks.feed(&portion[..read]),
                Err(error) => {
                    over = true;
                    return Some(Err(PemError::File(bounded::describe(&path, &error))));
                }
            }
        }
    }))
}
