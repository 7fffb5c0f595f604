//! DNS messages (RFC 1035, section 4): a query is written, an answer is read. Pure: no sockets, no time.

use std::net::IpAddr;

/// Addresses that are kept of one answer.
pub(super) const MOST_ADDRESSES: usize = 16;
/// Bytes that a UDP answer may have: what fits into one packet everywhere (RFC 9715).
const UDP_SIZE: u16 = 1232;
/// Aliases that are followed, one after the other.
const MOST_ALIASES: usize = 8;
const HEADER: usize = 12;
const CLASS_INTERNET: u16 = 1;
const TYPE_CNAME: u16 = 5;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// IPv4 addresses.
    A = 1,
    /// IPv6 addresses.
    Aaaa = 28,
}

/// What a nameserver says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: u8,
    /// Not all of it is here: it can be had over TCP.
    pub(super) truncated: bool,
    /// In the order of the answer, no more than [`MOST_ADDRESSES`].
    pub(super) addresses: Vec<IpAddr>,
}

/// A name as it stands in messages, in lower case.
#[derive(Clone, Copy)]
pub(super) struct Name {
    bytes: [u8; 255],
    length: usize,
}

impl Name {
    /// `text` without a dot at its end; none for what is no name.
    pub(super) fn new(text: &str) -> Option<Self> {
        let mut name = Self { bytes: [0; 255], length: 0 };
        for label in text.split('.') {
            name.push(label.as_bytes()).filter(|()| !label.is_empty())?;
        }
        name.push(&[])?;
        Some(name)
    }

    fn push(&mut self, label: &[u8]) -> Option<()> {
        let to = self.bytes.get_mut(self.length..self.length + 1 + label.len())?;
        (to[0], self.length) = (label.len() as u8, self.length + to.len());
        to[1..].copy_from_slice(label);
        to[1..].make_ascii_lowercase();
        (label.len() < 64).then_some(())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A question for `name`, which says that long answers may come in one packet if `extended` (RFC 6891).
pub(super) fn query(id: u16, name: &Name, kind: Kind, extended: bool) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + name.length + 4 + 11);
    message.extend_from_slice(&id.to_be_bytes());
    // Recursion is desired; one question, and one record besides if any.
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, extended.into()]);
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(&[0, kind as u8, 0, CLASS_INTERNET as u8]);
    if extended {
        let [high, low] = UDP_SIZE.to_be_bytes();
        message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
    }
    message
}

/// Reads what came for a question; none when it is not the answer to it. Of a message that was cut, or ends in
/// nonsense, counts what stands before that.
pub(super) fn answer(message: &[u8], id: u16, name: &Name, kind: Kind) -> Option<Answer> {
    const RESPONSE_AND_OPCODE: u8 = 0xf8;
    let (flags, questions) = (message.get(2..4)?, number(message, 4)?);
    if number(message, 0)? != id || flags[0] & RESPONSE_AND_OPCODE != 0x80 {
        return None;
    }
    let mut answer = Answer { code: flags[1] & 0x0f, truncated: flags[0] & 2 != 0, addresses: Vec::new() };
    // A server that cannot read a question need not repeat it.
    if questions == 0 && answer.code != 0 {
        return Some(answer);
    }
    let (asked, at) = read_name(message, HEADER)?;
    let same = asked.as_bytes() == name.as_bytes() && number(message, at)? == kind as u16;
    if questions != 1 || !same || number(message, at + 2)? != CLASS_INTERNET {
        return None;
    }
    let (count, records) = (number(message, 6)?, at + 4);
    let mut owner = *name;
    // Aliases stand in any order, although nearly always in that of the chain.
    for _ in 0..=MOST_ALIASES {
        match look_through(message, records, count, &owner, kind, &mut answer.addresses) {
            Some(alias) => owner = alias,
            None => break,
        }
    }
    Some(answer)
}

/// Adds the owner's addresses, or answers what it is an alias of.
fn look_through(
    message: &[u8],
    mut at: usize,
    count: u16,
    owner: &Name,
    kind: Kind,
    addresses: &mut Vec<IpAddr>,
) -> Option<Name> {
    for _ in 0..count {
        let (name, fields) = read_name(message, at)?;
        let (type_, class) = (number(message, fields)?, number(message, fields + 2)?);
        let (length, data) = (usize::from(number(message, fields + 8)?), fields + 10);
        let content = message.get(data..data + length)?;
        at = data + length;
        if class != CLASS_INTERNET || name.as_bytes() != owner.as_bytes() {
            continue;
        }
        if type_ == TYPE_CNAME {
            return read_name(message, data).map(|(alias, _)| alias);
        }
        if type_ != kind as u16 || addresses.len() == MOST_ADDRESSES {
            continue;
        }
        match kind {
            Kind::A => addresses.extend(<[u8; 4]>::try_from(content).map(IpAddr::from)),
            Kind::Aaaa => addresses.extend(<[u8; 16]>::try_from(content).map(IpAddr::from)),
        }
    }
    None
}

/// The name that stands there, and where what follows it begins.
fn read_name(message: &[u8], mut at: usize) -> Option<(Name, usize)> {
    let mut name = Name { bytes: [0; 255], length: 0 };
    let mut after = None;
    loop {
        let length = usize::from(*message.get(at)?);
        match length >> 6 {
            0 => {
                name.push(message.get(at + 1..at + 1 + length)?)?;
                at += 1 + length;
                if length == 0 {
                    return Some((name, after.unwrap_or(at)));
                }
            }
            3 => {
                after.get_or_insert(at + 2);
                let to = usize::from(number(message, at)? & 0x3fff);
                // Only backwards, so that it comes to an end.
                at = Some(to).filter(|to| *to < at)?;
            }
            _ => return None,
        }
    }
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Owner, type, data.
    type Record<'a> = (&'a str, u16, &'a [u8]);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// An answer to `asked` with these records.
    fn message(flags: [u8; 2], asked: &str, kind: Kind, records: &[Record<'_>]) -> Vec<u8> {
        let mut message = query(7, &name(asked), kind, false);
        message[2..4].copy_from_slice(&flags);
        message[7] = records.len() as u8;
        for (owner, type_, data) in records {
            message.extend_from_slice(name(owner).as_bytes());
            message.extend_from_slice(&type_.to_be_bytes());
            message.extend_from_slice(&[0, 1, 0, 0, 0, 9, 0, data.len() as u8]);
            message.extend_from_slice(data);
        }
        message
    }

    fn addresses(message: &[u8], asked: &str, kind: Kind) -> Option<Vec<IpAddr>> {
        answer(message, 7, &name(asked), kind).map(|answer| answer.addresses)
    }

    #[test]
    fn a_query_is_what_the_rfc_shows() {
        let written = query(0x1234, &name("Ca.test"), Kind::Aaaa, true);
        assert_eq!(
            written,
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x02ca\x04test\0\0\x1c\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn invalid_names_are_not_queried() {
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", "a.", &long, &["abcdefg"; 32].join(".")] {
            assert!(Name::new(text).is_none(), "{text}");
        }
        assert!(Name::new(&["abcdefg"; 31].join(".")).is_some());
    }

    #[test]
    fn addresses_of_the_name_and_of_its_aliases_are_taken() {
        let (one, two) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let six = Ipv6Addr::LOCALHOST.octets();
        let (a, b, c) = (name("a.test"), name("b.test"), name("c.test"));
        let (one, two): (&[u8], &[u8]) = (&one.octets(), &two.octets());
        let rows: &[(&str, Kind, &[Record<'_>], &[&str])] = &[
            ("two", Kind::A, &[("a.test", 1, one), ("A.TEST", 1, two)], &["10.0.0.1", "10.0.0.2"]),
            ("none", Kind::A, &[], &[]),
            ("of another", Kind::A, &[("x.test", 1, one), ("a.test", 1, two)], &["10.0.0.2"]),
            ("of another kind", Kind::A, &[("a.test", 28, &six), ("a.test", 1, two)], &["10.0.0.2"]),
            ("of a wrong length", Kind::A, &[("a.test", 1, &[1, 2, 3]), ("a.test", 1, two)], &["10.0.0.2"]),
            ("IPv6", Kind::Aaaa, &[("a.test", 28, &six)], &["::1"]),
            (
                "a chain",
                Kind::A,
                &[("a.test", 5, b.as_bytes()), ("b.test", 5, c.as_bytes()), ("c.test", 1, one)],
                &["10.0.0.1"],
            ),
            (
                "a chain backwards",
                Kind::A,
                &[("c.test", 1, one), ("b.test", 5, c.as_bytes()), ("a.test", 5, b.as_bytes())],
                &["10.0.0.1"],
            ),
            ("a circle", Kind::A, &[("a.test", 5, b.as_bytes()), ("b.test", 5, a.as_bytes())], &[]),
        ];
        for (what, kind, records, expected) in rows {
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            let found = addresses(&message([0x81, 0x80], "a.test", *kind, records), "a.test", *kind);
            assert_eq!(found, Some(expected), "{what}");
        }
    }

    #[test]
    fn no_more_are_kept_than_can_be_tried() {
        let record: Record<'_> = ("a.test", 1, &[10, 0, 0, 1]);
        let found = addresses(&message([0x81, 0x80], "a.test", Kind::A, &vec![record; 200]), "a.test", Kind::A);
        assert_eq!(found.unwrap().len(), MOST_ADDRESSES);
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let good = message([0x81, 0x80], "a.test", Kind::A, &[("a.test", 1, &[10, 0, 0, 1])]);
        let changed = |at: usize, to: u8| {
            let mut message = good.clone();
            message[at] = to;
            message
        };
        let rows = [
            ("another id", changed(1, 8)),
            ("a query", changed(2, 0x01)),
            ("another opcode", changed(2, 0x89)),
            ("another name", changed(13, b'b')),
            ("another kind", changed(21, 28)),
            ("another class", changed(23, 3)),
            ("two questions", changed(5, 2)),
            ("no question", changed(5, 0)),
            ("a header alone", good[..12].to_vec()),
            ("nothing", Vec::new()),
        ];
        for (what, message) in rows {
            assert_eq!(addresses(&message, "a.test", Kind::A), None, "{what}");
        }
        let mut unread = changed(5, 0)[..12].to_vec();
        unread[3] = 0x81;
        let answer = answer(&unread, 7, &name("a.test"), Kind::A);
        assert_eq!(answer.map(|answer| answer.code), Some(1), "a server that could not read the question");
    }

    #[test]
    fn of_what_was_cut_the_beginning_counts() {
        let records: Vec<Record<'_>> = vec![("a.test", 1, &[10, 0, 0, 1]), ("a.test", 1, &[10, 0, 0, 2])];
        let whole = message([0x83, 0x80], "a.test", Kind::A, &records);
        let cut = answer(&whole[..whole.len() - 1], 7, &name("a.test"), Kind::A).unwrap();
        assert!(cut.truncated);
        assert_eq!(cut.addresses, [IpAddr::from([10, 0, 0, 1])]);
    }

    #[test]
    fn compressed_names_are_read_and_point_only_backwards() {
        let mut good = message([0x81, 0x80], "a.test", Kind::A, &[]);
        good[7] = 1;
        let start = good.len();
        good.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x01");
        assert_eq!(addresses(&good, "a.test", Kind::A), Some(vec![IpAddr::from([10, 0, 0, 1])]));
        good[start + 1] = start as u8;
        assert_eq!(addresses(&good, "a.test", Kind::A), Some(Vec::new()), "it points to itself");
        good[start] = 0x80;
        assert_eq!(addresses(&good, "a.test", Kind::A), Some(Vec::new()), "of no known form");
    }
}
