//! What a parser of DER will take, told before it begins: of a few bytes it makes some hundred.

use super::validity::element;

/// The tag of an OCTET STRING: the content of an extension, which is DER again.
const OCTET_STRING: u8 = 0x04;
/// Whether there are others inside.
const CONSTRUCTED: u8 = 0x20;
/// The shortest element: a tag and a length of nothing.
const SHORTEST: usize = 2;

/// What OpenSSL takes at the most, for each element and for each byte (`tests/measured/full_arena.rs` holds it).
#[derive(Clone, Copy)]
pub(super) struct Cost {
    element: usize,
    byte: usize,
}

/// Of a certificate: a name in it is an object with a text and a place in a list, and there are two such lists once
/// somebody has looked at them.
pub(super) const CERTIFICATE: Cost = Cost { element: 544, byte: 4 };

/// A structure before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    /// Its bytes.
    pub(super) size: usize,
    /// Elements in it, at every depth.
    pub(super) elements: usize,
}

impl Weight {
    /// Of a structure; `None` when it is not DER throughout, so that OpenSSL could see more in it than we do.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        Some(Self { size: der.len(), elements: count(der, true)? })
    }

    /// The pieces of memory that it takes while it is parsed and looked at.
    pub(super) fn pieces(self, cost: Cost) -> impl Iterator<Item = usize> {
        // Many small blocks, which need not lie side by side.
        const PIECE: usize = 16 * 1024;
        let parsed = self.elements * cost.element + self.size * cost.byte;
        std::iter::repeat_n(PIECE, parsed.div_ceil(PIECE)).chain([self.size])
    }
}

/// Counts elements, in octet strings as well if they are to be opened.
fn count(mut rest: &[u8], open: bool) -> Option<usize> {
    /// A tag that goes on in the next byte, which nothing in X.509 has.
    const LONG: u8 = 0x1f;
    let mut count = 0;
    while !rest.is_empty() {
        let (tag, value, after) = element(rest).ok().filter(|(tag, ..)| tag & LONG != LONG)?;
        count += 1;
        rest = match tag {
            // What follows the inside is what follows the element.
            tag if tag & CONSTRUCTED != 0 => &rest[rest.len() - after.len() - value.len()..],
            OCTET_STRING if open => {
                // What is no DER is taken for as many elements as it could be.
                count += self::count(value, false).unwrap_or(value.len() / SHORTEST);
                after
            }
            _ => after,
        };
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        [&[tag, 0x82, (length >> 8) as u8, length as u8], content].concat()
    }

    #[test]
    fn elements_are_counted_at_every_depth() {
        let names = of(0x30, &of(0x86, b"spiffe://td").repeat(3));
        assert_eq!(count(&names, true), Some(4));
        // As an extension: its object identifier, and the names in an octet string.
        let extension = of(0x30, &[of(0x06, &[0x55, 0x1d, 0x11]), of(OCTET_STRING, &names)].concat());
        assert_eq!(count(&extension, true), Some(3 + 4));
        assert_eq!(count(&extension.repeat(2), true), Some(2 * 7));
        // A key identifier is an octet string of any bytes in that of its extension.
        assert_eq!(count(&of(OCTET_STRING, &of(OCTET_STRING, &[0xff; 20])), true), Some(2));
        assert_eq!(count(b"", true), Some(0));
    }

    #[test]
    fn nothing_hides_from_the_count() {
        let names = of(0x30, &of(0x86, b"").repeat(2));
        let indefinite: &[u8] = &[0x30, 0x80, 0x86, 0x00, 0x00, 0x00];
        for hidden in [indefinite, &[0x30, 0x84, 0, 0, 0, 0], &[0x3f, 0x81, 0x00, 0x00], &[0x30, 0x05, 0x00]] {
            assert_eq!(count(&[names.as_slice(), hidden].concat(), true), None, "{hidden:x?}");
            let content = [names.as_slice(), hidden].concat();
            assert_eq!(count(&of(OCTET_STRING, &content), true), Some(1 + content.len() / 2), "{hidden:x?}");
        }
    }
}
