//! DER as it must be: a length has as few bytes as it can have, and so have numbers and names.

use std::ops::Range;

mod time;

pub(super) use time::unix_time;

pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;

/// Whether this is a whole number in as few bytes as it can have.
pub(super) fn is_integer(value: &[u8]) -> bool {
    // Else the first nine bits are all the same.
    !matches!(value, [] | [0, 0..0x80, ..] | [0xff, 0x80..=0xff, ..])
}

/// Whether this is the name of something: numbers of seven bits a byte, each in as few bytes as it can have.
pub(super) fn is_object(value: &[u8]) -> bool {
    let starts = std::iter::once(true).chain(value.iter().map(|byte| byte & 0x80 == 0));
    let padded = starts.zip(value).any(|(starts, byte)| starts && *byte == 0x80);
    value.last().is_some_and(|last| last & 0x80 == 0) && !padded
}

/// What is left of some DER, and where in all of it that is.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(der: &'a [u8]) -> Self {
        Self { rest: der, at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn is(&self, tag: u8) -> bool {
        self.rest.first() == Some(&tag)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.at..self.at + self.rest.len()
    }

    pub(super) fn end(&self) -> Option<()> {
        self.is_empty().then_some(())
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        (self.rest, self.at) = (rest, self.at + 1);
        Some(*first)
    }

    /// Tag and value of the next element.
    pub(super) fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, inside) = self.element()?;
        Some((tag, inside.rest))
    }

    /// The next element's place, tag and length included, and its inside.
    pub(super) fn whole(&mut self, tag: u8) -> Option<(Range<usize>, Self)> {
        let start = self.at;
        let inside = self.inside(tag)?;
        Some((start..self.at, inside))
    }

    pub(super) fn inside(&mut self, tag: u8) -> Option<Self> {
        let (found, inside) = self.element()?;
        (found == tag).then_some(inside)
    }

    pub(super) fn time(&mut self) -> Option<i64> {
        let (tag, value) = self.any()?;
        let digits = match tag {
            UTC_TIME => 2,
            GENERALIZED_TIME => 4,
            _ => return None,
        };
        unix_time(value.strip_suffix(b"Z")?, digits)
    }

    fn element(&mut self) -> Option<(u8, Self)> {
        let tag = self.byte().filter(|tag| tag & 0x1f != 0x1f)?;
        let first = usize::from(self.byte()?);
        let length = match first {
            0..=0x7f => first,
            0x81..=0x84 => {
                let mut length = 0;
                for _ in 0x80..first {
                    length = length << 8 | usize::from(self.byte()?);
                }
                let least = if first == 0x81 { 0x80 } else { 1 << (8 * (first - 0x81)) };
                (length >= least).then_some(length)?
            }
            _ => return None,
        };
        let value = self.rest.get(..length)?;
        let inside = Self { rest: value, at: self.at };
        (self.rest, self.at) = (&self.rest[length..], self.at + length);
        Some((tag, inside))
    }
}
