//! What a revocation list says, read from its DER without a copy of its entries: parsed by OpenSSL, a list takes ten
//! times its size. As strict as BoringSSL, of which a list that it cannot read costs Envoy all of `ROOTCA`.

use std::ops::Range;

use crate::identity::reader::{GENERALIZED_TIME, Reader, UTC_TIME, is_integer, is_object};

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
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
    /// What is in the sequence of entries; nothing where there is none.
    pub(super) listed: Range<usize>,
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
        listed: 0..0,
        key_id: None,
        issuer_serial: None,
        scope: Scope::All,
        flaw: (der[inner] != der[algorithm.clone()]).then_some("names two signature algorithms"),
        signed,
        algorithm,
    };
    if fields.is(SEQUENCE) {
        let mut entries = fields.inside(SEQUENCE)?;
        parts.listed = entries.range();
        parts.entries(&mut entries)?;
    }
    if has_extensions && fields.is(EXTENSIONS) {
        let mut explicit = fields.inside(EXTENSIONS)?;
        parts.extensions(&mut explicit.inside(SEQUENCE)?)?;
        explicit.end()?;
    }
    fields.end()?;
    Some(parts)
}

/// Whether one of these entries, which were read before, has this number, as bytes without a sign; `None` when they are
/// none.
pub(super) fn names(listed: &[u8], serial: &[u8]) -> Option<bool> {
    let mut entries = Reader::new(listed);
    while !entries.is_empty() {
        let number = entries.inside(SEQUENCE)?.inside(INTEGER)?.rest();
        if number.strip_prefix(&[0]).unwrap_or(number) == serial {
            return Some(true);
        }
    }
    Some(false)
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

fn object(value: &[u8]) -> Option<&[u8]> {
    is_object(value).then_some(value)
}

fn integer(value: &[u8]) -> Option<&[u8]> {
    is_integer(value).then_some(value)
}
