use super::super::frames::Walker;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Whatever a connection carries, and wherever its pieces end: just the percent signs in the values of `:authority`
/// become dashes. What should become of them is found by a reader that has the whole connection before it.
pub fn authority(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let connection = [PREFACE, data].concat();
    let mut whole = connection.clone();
    Walker::default().walk(&mut whole);
    assert_eq!(whole, expected(&connection));
    let (mut pieces, mut walker) = (connection, Walker::default());
    pieces.chunks_mut(usize::from(piece % 40) + 1).for_each(|piece| walker.walk(piece));
    assert_eq!(pieces, whole, "it depends on where reads end");
}

fn expected(connection: &[u8]) -> Vec<u8> {
    let mut out = connection.to_vec();
    for block in header_blocks(connection) {
        let mut block = HeaderBlock { connection, rest: &block };
        while let Some(authority) = block.field() {
            authority.into_iter().filter(|at| connection[*at] == b'%').for_each(|at| out[at] = b'-');
        }
    }
    out
}

/// The places of the bytes of each header block (RFC 9113, sections 4.3, 6.2 and 6.10).
fn header_blocks(connection: &[u8]) -> Vec<Vec<usize>> {
    let mut blocks = vec![Vec::new()];
    let mut at = PREFACE.len();
    while let Some(&[a, b, c, kind, flags, ..]) = connection.get(at..at + 9) {
        let (start, end) = (at + 9, at + 9 + u32::from_be_bytes([0, a, b, c]) as usize);
        let (mut from, mut to) = (start, end);
        if kind == HEADERS {
            blocks.push(Vec::new());
            if flags & 0x8 != 0 && from < to {
                let Some(padding) = connection.get(from) else { break };
                from += 1;
                to -= usize::from(*padding).min(to - from);
            }
            if flags & 0x20 != 0 {
                from = (from + 5).min(to);
            }
        }
        if [HEADERS, CONTINUATION].contains(&kind) {
            blocks.last_mut().expect("there is one from the start").extend(from..to.min(connection.len()));
        }
        at = end;
    }
    blocks
}

/// A header block as HPACK has it (RFC 7541), as far as it goes.
struct HeaderBlock<'a> {
    connection: &'a [u8],
    rest: &'a [usize],
}

impl<'a> HeaderBlock<'a> {
    /// Reads a representation. The places of its value if that is an authority's, which may be cut off; else none.
    fn field(&mut self) -> Option<Vec<usize>> {
        let first = self.byte()?;
        let (bits, literal) = match first.leading_zeros() {
            0 => (7, false),
            1 => (6, true),
            2 => (5, false),
            _ => (4, true),
        };
        let index = self.integer(first, bits)?;
        if !literal {
            return Some(Vec::new());
        }
        let mut authority = index == 1;
        if index == 0 {
            let (coded, name, whole) = self.string()?;
            let name: Vec<u8> = name.iter().map(|at| self.connection[*at]).collect();
            authority = !coded && name == b":authority";
            whole.then_some(())?;
        }
        let (coded, value, _) = self.string()?;
        Some(if authority && !coded { value.to_vec() } else { Vec::new() })
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(self.connection[*first])
    }

    fn integer(&mut self, first: u8, bits: u32) -> Option<usize> {
        let mask = (1_u8 << bits) - 1;
        let mut value = u128::from(first & mask);
        if first & mask < mask {
            return Some(value as usize);
        }
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            // What is too large for the machine is as long as anything can be.
            let more = if shift < 64 { u128::from(byte & 0x7f) << shift } else { u128::from(byte & 0x7f) << 64 };
            value = value.saturating_add(more);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// Whether it is Huffman-coded, the places of its bytes, and whether they are all there.
    fn string(&mut self) -> Option<(bool, &'a [usize], bool)> {
        let first = self.byte()?;
        let len = self.integer(first, 7)?;
        let (text, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        Some((first & 0x80 != 0, text, text.len() == len))
    }
}
