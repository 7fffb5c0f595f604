//! What a revocation list says, read from its DER without a copy of its entries: parsed by OpenSSL, a list takes ten
//! times its size. As strict as BoringSSL, of which a list that it cannot read costs Envoy all of `ROOTCA`.

use std::ops::Range;

use time::unix_time;

mod time;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const EXTENSIONS: u8 = 0xa0;

/// 2.5.29.20, .27, .28 and .35.
const NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
const DELTA: &[u8] = &[0x55, 0x1d, 0x1b];
const DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 0x1c];
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];

/// Of which certificates a list tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::identity) enum Scope {
    /// Of all that its issuer signed.
    #[default]
    All,
    /// Of leaves alone.
    Leaves,
    /// Of CA certificates alone.
    Authorities,
}

/// The parts of a list that count; places are in its DER.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) signed: Range<usize>,
    pub(super) algorithm: Range<usize>,
    pub(super) signature: Range<usize>,
    pub(super) issuer: Range<usize>,
    pub(super) this_update: i64,
    pub(super) next_update: Option<i64>,
    pub(super) entries: usize,
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) issuer_serial: Option<Vec<u8>>,
    pub(super) scope: Scope,
    /// Why nobody can use it, whoever signed it.
    pub(super) flaw: Option<&'static str>,
}

/// Reads a list; `None` when it is none.
pub(super) fn parse(der: &[u8]) -> Option<Parts> {
    let mut file = Reader::new(der);
    let mut list = file.inside(SEQUENCE)?;
    file.end()?;
    let (signed, mut fields) = list.whole(SEQUENCE)?;
    let (algorithm, mut identifier) = list.whole(SEQUENCE)?;
    object(identifier.inside(OID)?.rest())?;
    if !identifier.is_empty() {
        identifier.any()?;
        identifier.end()?;
    }
    let mut signature = list.inside(BIT_STRING)?;
    list.end()?;
    // Bits that are no whole bytes are of no signature.
    (signature.byte()? == 0).then_some(())?;

    let version = if fields.is(INTEGER) { Some(fields.inside(INTEGER)?.rest().to_vec()) } else { None };
    let has_extensions = match version.as_deref() {
        Some([1]) => true,
        None | Some([0]) => false,
        Some(_) => return None,
    };
    let (inner, mut identifier) = fields.whole(SEQUENCE)?;
    object(identifier.inside(OID)?.rest())?;
    let (issuer, _) = fields.whole(SEQUENCE)?;
    let this_update = fields.time()?;
    let next_update = if fields.is(UTC_TIME) || fields.is(GENERALIZED_TIME) { Some(fields.time()?) } else { None };
    let mut parts = Parts {
        signature: signature.range(),
        issuer,
        this_update,
        next_update,
        entries: 0,
        key_id: None,
        issuer_serial: None,
        scope: Scope::All,
        flaw: (der[inner] != der[algorithm.clone()]).then_some("names two signature algorithms"),
        signed,
        algorithm,
    };
    if fields.is(SEQUENCE) {
        parts.entries(&mut fields.inside(SEQUENCE)?)?;
    }
    if has_extensions && fields.is(EXTENSIONS) {
        let mut explicit = fields.inside(EXTENSIONS)?;
        parts.extensions(&mut explicit.inside(SEQUENCE)?)?;
        explicit.end()?;
    }
    fields.end()?;
    Some(parts)
}

impl Parts {
    fn entries(&mut self, entries: &mut Reader<'_>) -> Option<()> {
        while !entries.is_empty() {
            let mut entry = entries.inside(SEQUENCE)?;
            integer(entry.inside(INTEGER)?.rest())?;
            entry.time()?;
            if !entry.is_empty() {
                let mut extensions = entry.inside(SEQUENCE)?;
                while !extensions.is_empty() {
                    if extension(&mut extensions)?.critical {
                        self.flaw.get_or_insert("has an entry with a critical extension");
                    }
                }
                entry.end()?;
            }
            self.entries += 1;
        }
        Some(())
    }

    fn extensions(&mut self, extensions: &mut Reader<'_>) -> Option<()> {
        let mut seen = [false; 2];
        while !extensions.is_empty() {
            let Extension { name, critical, value } = extension(extensions)?;
            let first = |seen: &mut bool| (!std::mem::replace(seen, true)).then_some(());
            match name {
                DELTA => _ = self.flaw.get_or_insert("is a delta CRL, which tells only what has changed"),
                DISTRIBUTION_POINT => {
                    first(&mut seen[0])?;
                    self.distribution_point(value)?;
                }
                AUTHORITY_KEY => {
                    first(&mut seen[1])?;
                    self.authority_key(value)?;
                }
                // OpenSSL looks at it, and some versions of BoringSSL do.
                NUMBER if !critical => {
                    let mut outer = Reader::new(value);
                    integer(outer.inside(INTEGER)?.rest())?;
                    outer.end()?;
                }
                _ if critical => _ = self.flaw.get_or_insert("has a critical extension that Envoy does not know"),
                _ => {}
            }
        }
        Some(())
    }

    /// RFC 5280, section 5.2.5.
    fn distribution_point(&mut self, value: &[u8]) -> Option<()> {
        let mut outer = Reader::new(value);
        let mut fields = outer.inside(SEQUENCE)?;
        outer.end()?;
        let mut scopes = 0;
        let mut last = None;
        while !fields.is_empty() {
            let (tag, value) = fields.any()?;
            // In their order, each once.
            last.replace(tag & 0x1f).is_none_or(|last| last < tag & 0x1f).then_some(())?;
            let set = matches!(value, [0xff]);
            match tag {
                0xa0 => _ = self.flaw.get_or_insert("is only for certificates that name its distribution point"),
                0x81 | 0x82 | 0x84 | 0x85 if !matches!(value, [0 | 0xff]) => return None,
                0x81 if set => (self.scope, scopes) = (Scope::Leaves, scopes + 1),
                0x82 if set => (self.scope, scopes) = (Scope::Authorities, scopes + 1),
                0x83 => _ = self.flaw.get_or_insert("tells only of some reasons (onlySomeReasons)"),
                0x84 if set => _ = self.flaw.get_or_insert("is an indirect CRL"),
                0x85 if set => {
                    self.flaw.get_or_insert("is only for attribute certificates");
                    scopes += 1;
                }
                0x81 | 0x82 | 0x84 | 0x85 => {}
                _ => return None,
            }
        }
        if scopes > 1 {
            self.flaw.get_or_insert("is for leaves alone and for others alone at once");
        }
        Some(())
    }

    /// RFC 5280, section 4.2.1.1.
    fn authority_key(&mut self, value: &[u8]) -> Option<()> {
        let mut outer = Reader::new(value);
        let mut fields = outer.inside(SEQUENCE)?;
        outer.end()?;
        while !fields.is_empty() {
            match fields.any()? {
                (0x80, value) => self.key_id = Some(value.to_vec()),
                (0xa1, _) => {}
                (0x82, value) => self.issuer_serial = Some(integer(value)?.to_vec()),
                _ => return None,
            }
        }
        Some(())
    }
}

struct Extension<'a> {
    name: &'a [u8],
    critical: bool,
    value: &'a [u8],
}

fn extension<'a>(extensions: &mut Reader<'a>) -> Option<Extension<'a>> {
    let mut fields = extensions.inside(SEQUENCE)?;
    let name = object(fields.inside(OID)?.rest())?;
    let critical = match fields.is(BOOLEAN) {
        true => match fields.inside(BOOLEAN)?.rest() {
            [0] => false,
            [0xff] => true,
            _ => return None,
        },
        false => false,
    };
    let value = fields.inside(OCTET_STRING)?.rest();
    fields.end()?;
    Some(Extension { name, critical, value })
}

/// The name of something: numbers of seven bits a byte, each in as few bytes as it can have.
fn object(value: &[u8]) -> Option<&[u8]> {
    let starts = std::iter::once(true).chain(value.iter().map(|byte| byte & 0x80 == 0));
    let padded = starts.zip(value).any(|(starts, byte)| starts && *byte == 0x80);
    (value.last()? & 0x80 == 0 && !padded).then_some(value)
}

/// A whole number in as few bytes as it can have.
fn integer(value: &[u8]) -> Option<&[u8]> {
    let padded = matches!(value, [0, next, ..] if *next < 0x80) || matches!(value, [0xff, next, ..] if *next >= 0x80);
    (!value.is_empty() && !padded).then_some(value)
}

/// What is left of some DER, and where in all of it that is.
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(der: &'a [u8]) -> Self {
        Self { rest: der, at: 0 }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn is(&self, tag: u8) -> bool {
        self.rest.first() == Some(&tag)
    }

    fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn range(&self) -> Range<usize> {
        self.at..self.at + self.rest.len()
    }

    fn end(&self) -> Option<()> {
        self.is_empty().then_some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        (self.rest, self.at) = (rest, self.at + 1);
        Some(*first)
    }

    /// Tag and value of the next element.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, inside) = self.element()?;
        Some((tag, inside.rest))
    }

    /// The next element's place, tag and length included, and its inside.
    fn whole(&mut self, tag: u8) -> Option<(Range<usize>, Self)> {
        let start = self.at;
        let inside = self.inside(tag)?;
        Some((start..self.at, inside))
    }

    fn inside(&mut self, tag: u8) -> Option<Self> {
        let (found, inside) = self.element()?;
        (found == tag).then_some(inside)
    }

    fn time(&mut self) -> Option<i64> {
        let (tag, value) = self.any()?;
        match tag {
            UTC_TIME => unix_time(value, 2),
            GENERALIZED_TIME => unix_time(value, 4),
            _ => None,
        }
    }

    /// In DER: a length has as few bytes as it can have.
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
