/// A number of protobuf's, of which byte after byte comes ("Encoding", Base 128 varints).
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
