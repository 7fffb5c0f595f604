//! HTTP/2 as it comes in, followed without being kept: how much of what a client has begun.

use super::{authority::Text, limits};

/// Length of the client's connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Length of a frame's head (the same, section 4.1).
const HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;
/// RFC 9113, section 6.5.2.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// An index that takes more than one byte, of a name that is not looked at.
const OTHER: usize = usize::MAX;
/// Follows frames and header blocks byte by byte, wherever reads happen to end, and keeps nothing of them.
pub(super) struct Walker {
    frame: Frame,
    block: Block,
    /// Bytes of the present header block, as far as its frames have been announced.
    pub(super) headers: usize,
    /// Headers of the present block so far.
    pub(super) fields: usize,
    /// Frames that have begun.
    pub(super) frames: usize,
    /// Whether the present frame belongs to a header block, with which a stream may begin.
    opens: bool,
    /// Whether the client has asked for a window that is too small.
    pub(super) narrow: bool,
}

enum Frame {
    Preface { left: usize },
    Header { bytes: [u8; HEAD], filled: usize },
    PadLength { left: usize, priority: bool },
    Skip { left: usize, then: usize, padding: usize },
    Block { left: usize, padding: usize },
    Settings { left: usize, entry: [u8; 6], filled: usize },
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

impl Default for Walker {
    fn default() -> Self {
        Self {
            frame: Frame::Preface { left: PREFACE },
            block: Block::Representation,
            headers: 0,
            fields: 0,
            frames: 0,
            opens: false,
            narrow: false,
        }
    }
}

impl Walker {
    pub(super) fn walk(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    /// Whether the client has begun with HTTP/2.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.frame, Frame::Preface { .. })
    }

    /// How many bytes come next from which no stream can come: the rest of a frame's head, or of the content of a frame
    /// that is not of a header block.
    pub(super) fn harmless(&self) -> usize {
        match self.frame {
            Frame::Preface { left } => left,
            Frame::Header { filled, .. } => HEAD - filled,
            Frame::Settings { left, .. } => left,
            _ if self.opens => 0,
            _ => self.rest(),
        }
    }

    /// How many bytes of the present frame are to come, as far as that is known.
    pub(super) fn rest(&self) -> usize {
        match self.frame {
            Frame::PadLength { left, .. } => left + 1,
            Frame::Skip { left, then, padding } => left + then + padding,
            Frame::Block { left, padding } => left + padding,
            Frame::Preface { .. } | Frame::Header { .. } | Frame::Settings { .. } => self.harmless(),
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
                    self.frames = self.frames.wrapping_add(1);
                    self.opens = [HEADERS, CONTINUATION, PUSH_PROMISE].contains(&bytes[3]);
                    if bytes[3] == HEADERS {
                        self.fields = 0;
                    }
                    self.headers = match bytes[3] {
                        HEADERS => length(bytes),
                        CONTINUATION => self.headers.saturating_add(length(bytes)),
                        _ => self.headers,
                    };
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
            Frame::Settings { left, entry, filled } => {
                *left -= 1;
                entry[*filled] = *byte;
                *filled += 1;
                if *filled == entry.len() {
                    *filled = 0;
                    let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
                    self.narrow |= entry[..2] == INITIAL_WINDOW_SIZE && value < limits::MIN_WINDOW;
                }
                if *left == 0 {
                    self.frame = Frame::start();
                }
            }
            Frame::Block { left, .. } => {
                *left -= 1;
                self.fields += usize::from(matches!(self.block, Block::Representation));
                self.block = self.block.step(byte);
                self.frame = std::mem::replace(&mut self.frame, Frame::start()).settle();
            }
        }
    }
}

fn length(header: &[u8; HEAD]) -> usize {
    usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])
}

impl Frame {
    fn start() -> Self {
        Self::Header { bytes: [0; HEAD], filled: 0 }
    }

    fn payload(header: &[u8; HEAD], block: &mut Block) -> Self {
        let length = length(header);
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
            SETTINGS if length > 0 => Self::Settings { left: length, entry: [0; 6], filled: 0 },
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
            Self::Integer { literal } if *byte & 0x80 == 0 => Self::after_index(literal, OTHER),
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
                let more = match usize::from(*byte & 0x7f) {
                    0 => 0,
                    more => 1_usize.checked_shl(shift).and_then(|unit| more.checked_mul(unit)).unwrap_or(usize::MAX),
                };
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
            (true, 0) => Self::Length { text: Text::name() },
            (literal, index) => Self::after_index(literal, usize::from(index)),
        }
    }

    fn after_index(literal: bool, index: usize) -> Self {
        match literal {
            true => Self::Length { text: Text::value_of(index) },
            false => Self::Representation,
        }
    }

    fn string(text: Text, left: usize) -> Self {
        match left {
            0 => text.then().map_or(Self::Representation, |text| Self::Length { text }),
            left => Self::Bytes { text, left },
        }
    }
}

#[cfg(test)]
mod tests;
