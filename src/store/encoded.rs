use std::{fmt, ops::Range};

use bytes::Bytes;

/// Characters of a mark.
pub const MARK: usize = 16;

/// An encoded secret as Envoy gets it: how it opens, then what is public, and behind it what holds a private key, which
/// lies in secret memory. All streams share the latter two. The opening has room for a mark, which means nothing:
/// whoever remembers the bytes and not what it thought of them, as Envoy does, looks anew when they are others.
#[derive(Clone, Default)]
pub struct Encoded {
    opening: Bytes,
    /// Where in it the mark stands.
    mark: usize,
    public: Bytes,
    secret: Bytes,
    /// Where in both of these together the certificates are.
    certificates: Range<usize>,
    /// Where in what is secret the key is.
    key: Range<usize>,
}

impl Encoded {
    /// A resource without a key, with the place of its certificates.
    pub fn public(resource: Bytes, certificates: Range<usize>) -> Self {
        Self { public: resource, certificates, ..Self::default() }
    }

    /// A resource whose end is secret, with the place of its certificates in all of it and of the key in what is
    /// secret.
    pub fn with_key(public: Bytes, secret: Bytes, certificates: Range<usize>, key: Range<usize>) -> Self {
        Self { public, secret, certificates, key, ..Self::default() }
    }

    /// The same behind an opening, with the place of its mark.
    #[must_use]
    pub fn opened(self, opening: Bytes, mark: usize) -> Self {
        Self { opening, mark, ..self }
    }

    /// Bytes of all of it.
    pub fn len(&self) -> usize {
        self.opening.len() + self.public.len() + self.secret.len()
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
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> {
        [&self.public, &self.secret].into_iter().filter(|piece| !piece.is_empty()).cloned()
    }

    /// The certificates in PEM, in up to two pieces.
    pub fn certificates(&self) -> [&[u8]; 2] {
        let Range { start, end } = self.certificates;
        let split = self.public.len();
        let public = self.public.get(start.min(split)..end.min(split));
        let secret = self.secret.get(start.saturating_sub(split)..end.saturating_sub(split));
        [public.unwrap_or_default(), secret.unwrap_or_default()]
    }

    /// The private key in PEM; nothing where there is none.
    pub fn key(&self) -> &[u8] {
        self.secret.get(self.key.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes)", self.len())
    }
}
