//! What of gRPC's and protobuf's framing is read byte by byte, so that no message need be in memory in one piece.

/// Kinds of fields ("Encoding", Message structure).
const NUMBER: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// Bytes of what stands before a message.
pub const PREFIX: usize = 5;

/// What stands before a message: whether it is compressed, and its length ("gRPC over HTTP/2").
#[derive(Default)]
pub struct Prefix {
    bytes: [u8; PREFIX],
    seen: usize,
}

impl Prefix {
    /// Takes what belongs to it, and answers how many bytes that are.
    pub fn take(&mut self, data: &[u8]) -> usize {
        let missing = &mut self.bytes[self.seen..];
        let taken = missing.len().min(data.len());
        missing[..taken].copy_from_slice(&data[..taken]);
        self.seen += taken;
        taken
    }

    /// The flag and the length, once it is whole.
    pub fn whole(&self) -> Option<(u8, usize)> {
        let [compressed, length @ ..] = self.bytes;
        (self.seen == self.bytes.len()).then(|| (compressed, u32::from_be_bytes(length) as usize))
    }
}

/// A number of which byte after byte comes ("Encoding", Base 128 varints).
#[derive(Clone, Copy, Default)]
pub struct Varint {
    value: u64,
    bits: u32,
}

/// It has more bytes than a number may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlong;

impl Varint {
    /// Whether a byte of it has come.
    pub fn has_begun(&self) -> bool {
        self.bits > 0
    }

    /// With one byte more; its value once it is whole.
    ///
    /// # Errors
    /// When there are too many.
    pub fn step(&mut self, byte: u8) -> Result<Option<u64>, Overlong> {
        if self.bits > 63 {
            return Err(Overlong);
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte < 0x80).then_some(self.value))
    }
}

/// What comes behind the key of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A number.
    Number,
    /// A length, and so many bytes.
    Delimited,
    /// So many bytes.
    Bytes(usize),
}

/// The number of the field with this key, and what comes behind it; `None` for what nobody writes.
pub fn field(key: u64) -> Option<(u64, Content)> {
    let content = match key & 7 {
        NUMBER => Content::Number,
        LENGTH_DELIMITED => Content::Delimited,
        EIGHT_BYTES => Content::Bytes(8),
        FOUR_BYTES => Content::Bytes(4),
        _ => return None,
    };
    Some((key >> 3, content)).filter(|(number, _)| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_whole_after_five_bytes_in_whatever_pieces() {
        let data = [1, 0, 0, 2, 3, 9, 9];
        for size in 1..=data.len() {
            let (mut prefix, mut taken) = (Prefix::default(), 0);
            for piece in data.chunks(size) {
                assert_eq!(prefix.whole().is_some(), taken == 5);
                taken += prefix.take(piece);
            }
            assert_eq!((taken, prefix.whole()), (5, Some((1, 0x203))), "in pieces of {size}");
        }
    }

    #[test]
    fn keys_tell_fields() {
        for (key, expected) in [
            (0x08, Some((1, Content::Number))),
            (0x11, Some((2, Content::Bytes(8)))),
            (0x0a, Some((1, Content::Delimited))),
            (0x1d, Some((3, Content::Bytes(4)))),
            (0x0b, None),
            (0x0c, None),
            (0x02, None),
        ] {
            assert_eq!(field(key), expected, "{key:#x}");
        }
    }
}
