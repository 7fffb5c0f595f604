use std::{any::Any, borrow::Cow, fmt, ops::Range, sync::Arc};

use bytes::Bytes;

use crate::identity::{TrustAnchor, TrustBundle};

/// Characters of a mark.
pub const MARK: usize = 16;
/// Bytes of anchors that are written in one go, and somewhat more.
const PORTION: usize = 4 * 1024;

/// An encoded secret as Envoy gets it: how it opens, then what is public, and behind it what holds a private key, which
/// lies in secret memory. All streams share all but the opening. That has room for a mark, which means nothing: whoever
/// remembers the bytes and not what it thought of them, as Envoy does, looks anew when they are others.
#[derive(Clone, Default)]
pub struct Encoded {
    opening: Bytes,
    /// Where in it the mark stands.
    mark: usize,
    pieces: Vec<Piece>,
    /// Where in all pieces together the certificates of a chain are.
    certificates: Range<usize>,
    /// The private key, at the end of the last piece.
    key: usize,
}

/// A part of an encoded secret, or of the message that it is sent in.
#[derive(Clone)]
pub enum Piece {
    /// As it is.
    Bytes(Bytes),
    /// Trust anchors, which are written one after the other as they go out.
    Anchors(AnchorText),
}

/// Trust anchors in PEM, or in DER. The text of hundreds would take as much memory again as they do, and as much for each
/// stream.
#[derive(Clone)]
pub struct AnchorText {
    bundle: Arc<TrustBundle>,
    der: bool,
    next: usize,
    /// Held until the last portion has been written.
    guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl AnchorText {
    /// All of these.
    pub fn new(bundle: Arc<TrustBundle>) -> Self {
        Self { bundle, der: false, next: 0, guard: None }
    }

    /// All of these, in DER.
    pub fn der(bundle: Arc<TrustBundle>) -> Self {
        Self { der: true, ..Self::new(bundle) }
    }

    /// Itself; each portion holds this until it has been written.
    #[must_use]
    pub fn held_by(self, guard: Arc<dyn Any + Send + Sync>) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.bundle.anchors().iter().skip(self.next).map(|anchor| self.len_of(anchor)).sum()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.next >= self.bundle.anchors().len()
    }

    fn len_of(&self, anchor: &TrustAnchor) -> usize {
        if self.der { anchor.der().len() } else { anchor.pem_len() }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while let Some(anchor) = self.bundle.anchors().get(self.next).filter(|_| text.len() < PORTION) {
            text.reserve_exact(self.len_of(anchor));
            match self.der {
                true => text.extend_from_slice(anchor.der()),
                false => anchor.write_pem(&mut text),
            }
            self.next += 1;
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

/// A portion of anchors, and who waits for it to be written.
struct Portion {
    text: Vec<u8>,
    _guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl AsRef<[u8]> for Portion {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Piece {
    /// Bytes of it.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Anchors(text) => text.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Anchors(text) => text.is_empty(),
        }
    }

    /// The next bytes of it, until there are none.
    pub fn take(&mut self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Self::Anchors(anchors) => {
                let text = anchors.take()?;
                Some(Bytes::from_owner(Portion { text, _guard: anchors.guard.clone() }))
            }
        }
    }
}

impl Encoded {
    /// A resource without a key.
    pub fn public(pieces: Vec<Piece>) -> Self {
        Self { pieces, ..Self::default() }
    }

    /// A resource whose end is secret, with the place of its certificates in all of it and of the key in what is
    /// secret.
    pub fn with_key(public: Bytes, secret: Bytes, certificates: Range<usize>, key: Range<usize>) -> Self {
        let pieces = [public, secret].into_iter().filter(|piece| !piece.is_empty()).map(Piece::Bytes).collect();
        Self { pieces, certificates, key: key.len(), ..Self::default() }
    }

    /// The same behind an opening, with the place of its mark.
    #[must_use]
    pub fn opened(self, opening: Bytes, mark: usize) -> Self {
        Self { opening, mark, ..self }
    }

    /// Bytes of all of it.
    pub fn len(&self) -> usize {
        self.opening.len() + self.pieces.iter().map(Piece::len).sum::<usize>()
    }

    /// How it opens, with this mark.
    pub fn opening(&self, mark: u64) -> Vec<u8> {
        let mut opening = self.opening.to_vec();
        if let Some(place) = opening.get_mut(self.mark..self.mark + MARK) {
            place.copy_from_slice(format!("{mark:0MARK$x}").as_bytes());
        }
        opening
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it consists of behind its opening, in its order; not copied.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.pieces.iter().filter(|piece| !piece.is_empty()).cloned()
    }

    /// The certificates in PEM, piece by piece: the chain of a key, or the trust anchors that come first.
    pub fn certificates(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let mut start = 0;
        let chain = self.pieces.iter().filter_map(move |piece| {
            let Piece::Bytes(bytes) = piece else { return None };
            let place = |at: usize| at.saturating_sub(start).min(bytes.len());
            let part = bytes.get(place(self.certificates.start)..place(self.certificates.end));
            start += bytes.len();
            part.filter(|part| !part.is_empty()).map(Cow::Borrowed)
        });
        let anchors = self.pieces.iter().find_map(|piece| match piece {
            Piece::Anchors(text) => Some(text.clone()),
            Piece::Bytes(_) => None,
        });
        let anchors = std::iter::successors(anchors.map(|text| (text, Vec::new())), |(text, _)| {
            let mut text = text.clone();
            text.take().map(|portion| (text, portion))
        });
        chain.chain(anchors.skip(1).map(|(_, portion)| Cow::Owned(portion)))
    }

    /// The private key in PEM; nothing where there is none.
    pub fn key(&self) -> &[u8] {
        match self.pieces.last() {
            Some(Piece::Bytes(last)) => last.get(last.len().saturating_sub(self.key)..).unwrap_or_default(),
            _ => &[],
        }
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes)", self.len())
    }
}
