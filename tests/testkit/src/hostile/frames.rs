//! HTTP/2 frames by hand (RFC 9113, section 4.1): nine bytes of head, then the content.

use crate::rng::Rng;

/// What a client sends first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const KINDS: u64 = 11;
/// The largest that a server must take.
const LARGEST: usize = 16_384;

/// No settings at all.
pub(super) fn settings() -> Vec<u8> {
    frame(0, SETTINGS, 0, 0)
}

/// A frame of any kind, on one of the first streams, with random content of which most is short.
pub(super) fn random(rng: &mut Rng) -> Vec<u8> {
    let lengths = [0, 4, 5, 8, rng.within(0..64), rng.within(0..LARGEST)];
    let length = lengths[rng.within(0..lengths.len())];
    let (kind, flags, stream) = (rng.below(KINDS) as u8, rng.next() as u8, rng.below(8) as u32);
    [frame(length, kind, flags, stream), rng.bytes(length)].concat()
}

/// The head of a frame, and less content than it tells of.
pub(super) fn beginning(rng: &mut Rng) -> Vec<u8> {
    let length = rng.within(1..LARGEST);
    let (kind, flags) = (rng.below(KINDS) as u8, rng.next() as u8);
    let content = rng.within(0..length);
    [frame(length, kind, flags, 1), rng.bytes(content)].concat()
}

/// A frame with this content.
pub(super) fn with_content(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    [&frame(content.len(), kind, flags, stream), content].concat()
}

fn frame(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let length = (length as u32).to_be_bytes();
    let mut head = vec![length[1], length[2], length[3], kind, flags];
    head.extend(stream.to_be_bytes());
    head
}
