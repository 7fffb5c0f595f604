//! Certificates of which some are odd: one that is good, and each of its elements changed in every way that a broken
//! or old encoder has; then what was seen in the field and what standards rule out.

pub(crate) mod forms;
pub(crate) mod page;

use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    sign::Signer,
};

/// A good certificate, or a part of it.
#[derive(Clone)]
pub(crate) struct Node {
    tag: u8,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Bytes(Vec<u8>),
    Parts(Vec<Node>),
}

/// What becomes of one element, given its tag and content; the answer stands in its place.
pub(crate) type Edit = (&'static str, fn(u8, &[u8]) -> Vec<u8>);

pub(crate) const EDITS: [Edit; 14] = [
    ("with a length of one byte too many", |tag, content| long(tag, content, 1)),
    ("with a length of two bytes too many", |tag, content| long(tag, content, 2)),
    ("with an indefinite length", |tag, content| [&[tag, 0x80], content, &[0, 0]].concat()),
    ("empty", |tag, _| vec![tag, 0]),
    ("missing", |_, _| Vec::new()),
    ("twice", |tag, content| element(tag, content).repeat(2)),
    ("with NULL at its end", |tag, content| element(tag, &[content, &[5, 0]].concat())),
    ("with NULL after it", |tag, content| [element(tag, content), vec![5, 0]].concat()),
    ("with zeros before it", |tag, content| [vec![0, 0], element(tag, content)].concat()),
    ("of another class", |tag, content| element(tag ^ 0x40, content)),
    ("constructed or primitive where it should not be", |tag, content| element(tag ^ 0x20, content)),
    ("with a tag in the long form", |tag, content| [&[tag | 0x1f, tag & 0x1f], &element(0, content)[1..]].concat()),
    ("with another first byte", |tag, content| changed(tag, content, content.first().map(|_| 0), 0x80)),
    ("with another last byte", |tag, content| changed(tag, content, content.len().checked_sub(1), 0x01)),
];

fn changed(tag: u8, content: &[u8], at: Option<usize>, bits: u8) -> Vec<u8> {
    let mut content = content.to_vec();
    if let Some(at) = at {
        content[at] ^= bits;
    }
    element(tag, &content)
}

/// An element in DER.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    long(tag, content, 0)
}

/// The same with a length that has so many bytes more than it needs.
pub(crate) fn long(tag: u8, content: &[u8], more: usize) -> Vec<u8> {
    let length = content.len();
    let needed = match length {
        0..0x80 => 0,
        0x80..0x100 => 1,
        0x100..0x1_0000 => 2,
        _ => 3,
    };
    let bytes = needed + more;
    let header = match bytes {
        0 => vec![tag, length as u8],
        _ => [&[tag, 0x80 | bytes as u8], &length.to_be_bytes()[size_of::<usize>() - bytes..]].concat(),
    };
    [&header, content].concat()
}

impl Node {
    /// A structure in DER; octet strings and bit strings stay as they are.
    pub(crate) fn parse(der: &[u8]) -> Self {
        Self::parse_next(der).0
    }

    fn parse_next(der: &[u8]) -> (Self, &[u8]) {
        let (tag, first) = (der[0], usize::from(der[1]));
        let (length, start) = match first {
            0..0x80 => (first, 2),
            _ => {
                let count = first - 0x80;
                (der[2..2 + count].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), 2 + count)
            }
        };
        let (mut inside, rest) = der[start..].split_at(length);
        if tag & 0x20 == 0 {
            return (Self { tag, content: Content::Bytes(inside.to_vec()) }, rest);
        }
        let mut parts = Vec::new();
        while !inside.is_empty() {
            let (part, after) = Self::parse_next(inside);
            parts.push(part);
            inside = after;
        }
        (Self { tag, content: Content::Parts(parts) }, rest)
    }

    /// Elements in it, itself among them.
    pub(crate) fn count(&self) -> usize {
        match &self.content {
            Content::Bytes(_) => 1,
            Content::Parts(parts) => 1 + parts.iter().map(Self::count).sum::<usize>(),
        }
    }

    /// In DER, with the element of this number (in the order of the bytes) edited.
    pub(crate) fn edited(&self, at: usize, edit: fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
        self.write(&mut 0, at, edit)
    }

    fn write(&self, number: &mut usize, at: usize, edit: fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
        let own = *number;
        *number += 1;
        let content = match &self.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Parts(parts) => parts.iter().flat_map(|part| part.write(number, at, edit)).collect(),
        };
        if own == at { edit(self.tag, &content) } else { element(self.tag, &content) }
    }
}

/// A certificate of this content, signed with ECDSA and SHA-256.
pub(crate) fn signed(content: &[u8], key: &PKey<Private>) -> Vec<u8> {
    let mut signer = Signer::new(MessageDigest::sha256(), key).expect("a signer");
    let signature = signer.sign_oneshot_to_vec(content).expect("a signature");
    certificate(content, &forms::ECDSA_SHA256, &[&[0], signature.as_slice()].concat())
}

/// A certificate of this content, algorithm and signature (a bit string's content).
pub(crate) fn certificate(content: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    element(0x30, &[content, algorithm, &element(0x03, signature)].concat())
}

impl Node {
    /// The first of its parts.
    pub(crate) fn inner(&self) -> &Self {
        match &self.content {
            Content::Parts(parts) => &parts[0],
            Content::Bytes(_) => self,
        }
    }

    /// Its content in DER.
    pub(crate) fn contents(&self) -> Vec<u8> {
        match &self.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Parts(parts) => parts.iter().flat_map(|part| part.edited(usize::MAX, |_, _| Vec::new())).collect(),
        }
    }
}
