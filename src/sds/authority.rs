use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

use super::limits;

/// An HTTP/2 connection whose client may be gRPC's C++ core, as in Envoy's `google_grpc`.
///
/// For a `unix:` target that core sends the percent-encoded path of the socket as `:authority`. A percent sign is not
/// allowed there (RFC 3986, section 3.2.2 allows it only in registered names, which the http crate does not), and h2
/// resets such a stream before anybody sees it (hyperium/h2#487). Nothing here looks at the authority, so its percent
/// signs are replaced, byte for byte, on the way in.
pub(super) struct ForgivingStream {
    stream: UnixStream,
    walker: Walker,
}

impl ForgivingStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, walker: Walker::default() }
    }
}

impl AsyncRead for ForgivingStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !limits::may_read() {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.walker.walk(&mut buf.filled_mut()[before..]);
        polled
    }
}

impl AsyncWrite for ForgivingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Length of the client's connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// gRPC's core spells the name out instead of using its index.
const AUTHORITY_NAME: &[u8] = b":authority";

/// Follows frames and header blocks byte by byte, wherever reads happen to end, and keeps nothing of them.
struct Walker {
    frame: Frame,
    block: Block,
}

enum Frame {
    Preface { left: usize },
    Header { bytes: [u8; 9], filled: usize },
    PadLength { left: usize, priority: bool },
    Skip { left: usize, then: usize, padding: usize },
    Block { left: usize, padding: usize },
}

/// Where in a header block we are (RFC 7541, section 6).
#[derive(Clone, Copy)]
enum Block {
    /// At the first byte of a representation.
    Representation,
    /// Within the integer that follows such a byte; a representation that is only an index ends with it.
    Integer { literal: bool },
    /// At the first byte of a string.
    Length { text: Text },
    /// Within the length of a string.
    MoreLength { text: Text, value: usize, shift: u32 },
    /// Within a string.
    Bytes { text: Text, left: usize },
}

/// A string of a header block.
#[derive(Clone, Copy)]
enum Text {
    /// A name, with how much of `:authority` it has matched so far; `None` once it is another one.
    Name { matched: Option<usize> },
    /// A value, whose percent signs are replaced or not.
    Value { rewrite: bool },
}

impl Default for Walker {
    fn default() -> Self {
        Self { frame: Frame::Preface { left: PREFACE }, block: Block::Representation }
    }
}

impl Walker {
    fn walk(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    fn step(&mut self, byte: &mut u8) {
        match &mut self.frame {
            Frame::Preface { left } => {
                *left -= 1;
                if *left == 0 {
                    self.frame = Frame::start();
                }
            }
            Frame::Header { bytes, filled } => {
                bytes[*filled] = *byte;
                *filled += 1;
                if *filled == bytes.len() {
                    self.frame = Frame::payload(bytes, &mut self.block);
                }
            }
            Frame::PadLength { left, priority } => {
                let padding = usize::from(*byte).min(*left);
                let fixed = if *priority { 5.min(*left - padding) } else { 0 };
                self.frame = Frame::Skip { left: fixed, then: *left - padding - fixed, padding }.settle();
            }
            Frame::Skip { left, .. } => {
                *left -= 1;
                self.frame = std::mem::replace(&mut self.frame, Frame::start()).settle();
            }
            Frame::Block { left, .. } => {
                *left -= 1;
                self.block = self.block.step(byte);
                self.frame = std::mem::replace(&mut self.frame, Frame::start()).settle();
            }
        }
    }
}

impl Frame {
    fn start() -> Self {
        Self::Header { bytes: [0; 9], filled: 0 }
    }

    fn payload(header: &[u8; 9], block: &mut Block) -> Self {
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        if kind == HEADERS {
            *block = Block::Representation;
        }
        match kind {
            HEADERS if flags & PADDED != 0 && length > 0 => {
                Self::PadLength { left: length - 1, priority: flags & PRIORITY != 0 }
            }
            HEADERS => {
                let fixed = if flags & PRIORITY != 0 { 5.min(length) } else { 0 };
                Self::Skip { left: fixed, then: length - fixed, padding: 0 }.settle()
            }
            CONTINUATION => Self::Block { left: length, padding: 0 }.settle(),
            _ => Self::Skip { left: length, then: 0, padding: 0 }.settle(),
        }
    }

    /// The state in which the next byte is to be taken: parts without a byte left are passed over.
    fn settle(self) -> Self {
        match self {
            Self::Skip { left: 0, then: 0, padding: 0 } | Self::Block { left: 0, padding: 0 } => Self::start(),
            Self::Skip { left: 0, then: 0, padding } | Self::Block { left: 0, padding } => {
                Self::Skip { left: padding, then: 0, padding: 0 }
            }
            Self::Skip { left: 0, then, padding } => Self::Block { left: then, padding },
            other => other,
        }
    }
}

impl Block {
    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Representation => Self::representation(*byte),
            Self::Integer { literal } if *byte & 0x80 == 0 => Self::after_index(literal, false),
            Self::Integer { .. } => self,
            Self::Length { text } => {
                // A Huffman-coded string is left as it is: gRPC's core codes neither name nor value.
                let text = if *byte & 0x80 != 0 { text.passed_over() } else { text };
                match usize::from(*byte & 0x7f) {
                    0x7f => Self::MoreLength { text, value: 0x7f, shift: 0 },
                    length => Self::string(text, length),
                }
            }
            Self::MoreLength { text, value, shift } => {
                // Longer ones than fit here are longer than any header that h2 lets pass.
                let more = usize::from(*byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                let value = value.saturating_add(more);
                match *byte & 0x80 {
                    0 => Self::string(text, value),
                    _ => Self::MoreLength { text, value, shift: shift.saturating_add(7) },
                }
            }
            Self::Bytes { text, left } => Self::string(text.step(byte), left - 1),
        }
    }

    fn representation(byte: u8) -> Self {
        // Indexed; literal to be indexed; size update; literal never or not to be indexed.
        let (bits, literal) = match byte {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let mask = (1u8 << bits) - 1;
        let index = byte & mask;
        match (literal, index) {
            (_, index) if index == mask => Self::Integer { literal },
            (true, 0) => Self::Length { text: Text::Name { matched: Some(0) } },
            (literal, index) => Self::after_index(literal, usize::from(index) == AUTHORITY),
        }
    }

    fn after_index(literal: bool, authority: bool) -> Self {
        match literal {
            true => Self::Length { text: Text::Value { rewrite: authority } },
            false => Self::Representation,
        }
    }

    fn string(text: Text, left: usize) -> Self {
        match (left, text) {
            (0, Text::Name { matched }) => {
                Self::Length { text: Text::Value { rewrite: matched == Some(AUTHORITY_NAME.len()) } }
            }
            (0, Text::Value { .. }) => Self::Representation,
            (left, text) => Self::Bytes { text, left },
        }
    }
}

impl Text {
    fn passed_over(self) -> Self {
        match self {
            Self::Name { .. } => Self::Name { matched: None },
            Self::Value { .. } => Self::Value { rewrite: false },
        }
    }

    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Name { matched: Some(matched) } if AUTHORITY_NAME.get(matched) == Some(byte) => {
                Self::Name { matched: Some(matched + 1) }
            }
            Self::Name { .. } => Self::Name { matched: None },
            Self::Value { rewrite } => {
                if rewrite && *byte == b'%' {
                    *byte = b'-';
                }
                self
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    /// A header block: `:method: POST` by index, an authority, and another header with a percent sign.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x41, authority.len() as u8];
        block.extend(authority);
        block.extend(b"\x40\x03a%b\x03c%d\x0f\x0d\x02%%\x1f\x80\x01\x01%\x82");
        block
    }

    fn connection(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        parts.iter().for_each(|part| bytes.extend(part));
        bytes
    }

    /// Walks in pieces of each size, and expects the same result of all.
    fn walked(bytes: &[u8]) -> Vec<u8> {
        let whole = |size: usize| {
            let (mut bytes, mut walker) = (bytes.to_vec(), Walker::default());
            bytes.chunks_mut(size).for_each(|piece| walker.walk(piece));
            bytes
        };
        let expected = whole(bytes.len());
        (1..20).for_each(|size| assert_eq!(whole(size), expected, "in pieces of {size}"));
        expected
    }

    #[test]
    fn only_the_percent_signs_of_the_authority_are_replaced() {
        let (before, after) = (block(b"var%2Frun%2Fsocket"), block(b"var-2Frun-2Fsocket"));
        let padded = |block: &[u8]| [b"\x03", &b"\0\0\0\0\x10"[..], block, b"%%%"].concat();
        let with = |block: &[u8]| {
            connection(&[
                frame(0x4, 0, b"%%%%%%"),
                frame(HEADERS, 0x4, block),
                frame(0x0, 0, b"A%%%%"),
                frame(HEADERS, 0x4 | PADDED | PRIORITY, &padded(block)),
                frame(HEADERS, 0x4 | PRIORITY, &[b"%%%%%", block].concat()),
                frame(HEADERS, 0, &block[..7]),
                frame(CONTINUATION, 0, &block[7..9]),
                frame(CONTINUATION, 0, b""),
                frame(CONTINUATION, 0x4, &block[9..]),
                frame(0x6, 0, b"%%%%%%%%"),
            ])
        };
        assert_eq!(walked(&with(&before)), walked(&with(&after)));
        assert_eq!(walked(&with(&before)), with(&after));
    }

    #[test]
    fn a_name_that_is_spelt_out_is_recognised() {
        let with = |name: &[u8], value: &[u8]| {
            let lengths = (name.len() as u8, value.len() as u8);
            connection(&[frame(HEADERS, 4, &[&[0x40, lengths.0], name, &[lengths.1], value, b"\x83"].concat())])
        };
        assert_eq!(walked(&with(b":authority", b"%2Fvar%2Fs")), with(b":authority", b"-2Fvar-2Fs"));
        for other in [&b":authoritx"[..], b":authority2", b":authorit", b"authority"] {
            assert_eq!(walked(&with(other, b"%2F")), with(other, b"%2F"));
        }
    }

    #[test]
    fn long_and_coded_authorities_are_followed() {
        let long: Vec<u8> = b"%2F".iter().copied().cycle().take(300).collect();
        // 300 = 127 + 173, and 173 = 0x2d + (1 << 7).
        let block = |value: &[u8]| [b"\x01\x7f\xad\x01", value, b"\x83"].concat();
        let replaced: Vec<u8> = long.iter().map(|byte| if *byte == b'%' { b'-' } else { *byte }).collect();
        let with = |value: &[u8]| connection(&[frame(HEADERS, 4, &block(value)), frame(HEADERS, 4, &block(value))]);
        assert_eq!(walked(&with(&long)), with(&replaced));
        let coded = connection(&[frame(HEADERS, 4, b"\x41\x83%%%")]);
        assert_eq!(walked(&coded), coded);
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic() {
        let mut state = 1u64;
        for length in 0..2000 {
            let mut bytes: Vec<u8> = (0..length % 400)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            // Short frames of the kinds that are looked into.
            for at in (24..bytes.len().saturating_sub(9)).step_by(40) {
                bytes[at..at + 4].copy_from_slice(&[0, 0, 31, if at % 80 == 24 { HEADERS } else { CONTINUATION }]);
            }
            let before = bytes.clone();
            Walker::default().walk(&mut bytes);
            let changed = before.iter().zip(&bytes).filter(|(before, after)| before != after);
            assert!(changed.into_iter().all(|pair| pair == (&b'%', &b'-')));
        }
    }
}
