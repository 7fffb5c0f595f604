//! Certificates as strictly as BoringSSL reads them. OpenSSL takes more, and Envoy refuses a whole secret for one
//! certificate in it: whatever passes here, Envoy can read. `tests/roots/odd_certificates.rs` holds it against Envoy itself.

use super::{
    reader::{GENERALIZED_TIME, Reader, UTC_TIME, is_integer, is_object, unix_time},
    validity::element,
};

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OBJECT: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const UTF8: u8 = 0x0c;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// Fields of a certificate that have tags of their own.
const VERSION: u8 = 0xa0;
const ISSUER_UID: u8 = 0x81;
const SUBJECT_UID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
/// A tag of the universal class (its two upper bits), whether it is constructed, and its number.
const CLASS: u8 = 0xc0;
const CONSTRUCTED: u8 = 0x20;
const NUMBER: u8 = 0x1f;

/// What is wrong, in words that go on after "it ".
type Refused = &'static str;

const NOT_DER: Refused = "is not DER throughout";
const UNEXPECTED: Refused = "has a field in the place of another one";
const EXCESS: Refused = "has more fields than a certificate";
const VERSION_UNKNOWN: Refused = "has a version that is not 1, 2 or 3";
const TOO_EARLY: Refused = "has extensions or unique identifiers that its version does not allow";
const BAD_INTEGER: Refused = "has an integer, such as its serial number, that is not DER";
const BAD_BITS: Refused = "has a bit string with wrong or set unused bits";
const BAD_OBJECT: Refused = "has a malformed object identifier";
const BAD_NAME: Refused = "has a name that is empty in part or in a wrong form";
const BAD_TEXT: Refused = "has a name with invalid characters for its type";
const BAD_TIME: Refused = "has a time that RFC 5280 does not allow";
const BAD_BOOLEAN: Refused = "has a boolean that is not one byte";
const TWICE: Refused = "has the same extension twice";

/// Bytes of the certificate at the start of these, which BoringSSL reads; what follows it is ignored by everybody.
///
/// # Errors
/// The first thing in it that BoringSSL refuses, or that makes it refuse every path with this certificate in it.
pub(super) fn check(der: &[u8]) -> Result<usize, Refused> {
    let mut outer = Fields::new(der);
    let mut certificate = outer.enter(SEQUENCE)?;
    let mut signed = certificate.enter(SEQUENCE)?;
    algorithm(&mut certificate)?;
    // Here alone a length may take more bytes than it needs.
    let (tag, bits, rest) = element(certificate.0.rest()).map_err(|_| NOT_DER)?;
    if tag != BIT_STRING {
        return Err(UNEXPECTED);
    }
    bit_string(bits)?;
    Fields::new(rest).end()?;
    to_be_signed(&mut signed)?;
    Ok(der.len() - outer.0.rest().len())
}

/// The bits in a BIT STRING that is all there is.
///
/// # Errors
/// What is wrong with it.
pub(super) fn bits(der: &[u8]) -> Result<&[u8], Refused> {
    let mut fields = Fields::new(der);
    let value = fields.take(BIT_STRING)?;
    bit_string(value)?;
    fields.end()?;
    Ok(&value[1..])
}

/// Whether this is a SEQUENCE of DER, and nothing else.
pub(super) fn is_sequence(der: &[u8]) -> bool {
    fn is_der(fields: &mut Fields<'_>) -> Result<(), Refused> {
        while !fields.is_empty() {
            let (tag, value) = fields.next()?;
            if tag & CONSTRUCTED != 0 {
                is_der(&mut Fields::new(value))?;
            }
        }
        Ok(())
    }
    let mut fields = Fields::new(der);
    fields.enter(SEQUENCE).and_then(|mut inside| is_der(&mut inside)).is_ok() && fields.end().is_ok()
}

fn to_be_signed(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let version = match fields.at(VERSION) {
        false => 0,
        true => {
            let mut explicit = fields.enter(VERSION)?;
            let version = explicit.take(INTEGER)?;
            explicit.end()?;
            match version {
                [version @ 0..=2] => *version,
                _ => return Err(VERSION_UNKNOWN),
            }
        }
    };
    integer(fields.take(INTEGER)?)?;
    algorithm(fields)?;
    name(fields)?;
    let mut validity = fields.enter(SEQUENCE)?;
    time(&mut validity)?;
    time(&mut validity)?;
    validity.end()?;
    name(fields)?;
    let mut key = fields.enter(SEQUENCE)?;
    algorithm(&mut key)?;
    bit_string(key.take(BIT_STRING)?)?;
    key.end()?;
    for tag in [ISSUER_UID, SUBJECT_UID] {
        if fields.at(tag) {
            bit_string(fields.take(tag)?)?;
            if version < 1 {
                return Err(TOO_EARLY);
            }
        }
    }
    if fields.at(EXTENSIONS) {
        if version < 2 {
            return Err(TOO_EARLY);
        }
        let mut explicit = fields.enter(EXTENSIONS)?;
        extensions(&mut explicit.enter(SEQUENCE)?)?;
        explicit.end()?;
    }
    fields.end()
}

fn algorithm(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let mut algorithm = fields.enter(SEQUENCE)?;
    object(algorithm.take(OBJECT)?)?;
    if !algorithm.is_empty() {
        any(&mut algorithm)?;
    }
    algorithm.end()
}

fn name(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let mut name = fields.enter(SEQUENCE)?;
    while !name.is_empty() {
        let mut part = name.enter(SET).map_err(|_| BAD_NAME)?;
        if part.is_empty() {
            return Err(BAD_NAME);
        }
        while !part.is_empty() {
            let mut entry = part.enter(SEQUENCE).map_err(|_| BAD_NAME)?;
            object(entry.take(OBJECT).map_err(|_| BAD_NAME)?)?;
            any(&mut entry)?;
            entry.end().map_err(|_| BAD_NAME)?;
        }
    }
    Ok(())
}

fn extensions(list: &mut Fields<'_>) -> Result<(), Refused> {
    let mut seen = Vec::new();
    while !list.is_empty() {
        let mut extension = list.enter(SEQUENCE)?;
        let identifier = extension.take(OBJECT)?;
        object(identifier)?;
        // Any byte but zero counts as true.
        if extension.at(BOOLEAN) && extension.take(BOOLEAN)?.len() != 1 {
            return Err(BAD_BOOLEAN);
        }
        extension.take(OCTET_STRING)?;
        extension.end()?;
        // It is read, and then no path with it is accepted.
        if seen.contains(&identifier) {
            return Err(TWICE);
        }
        seen.push(identifier);
    }
    Ok(())
}

/// A value of whatever type, as in names and as parameters of algorithms.
fn any(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let (tag, value) = fields.next()?;
    if tag & CLASS != 0 {
        return Ok(());
    }
    // EXTERNAL, EMBEDDED PDV, SEQUENCE, SET and CHARACTER STRING are made of others, and nothing else is.
    if matches!(tag & NUMBER, 8 | 11 | 16 | 17 | 29) != (tag & CONSTRUCTED != 0) {
        return Err(BAD_NAME);
    }
    let characters = |valid: bool| if valid { Ok(()) } else { Err(BAD_TEXT) };
    let of_size = |size: usize| {
        let code = |bytes: &[u8]| bytes.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
        value.chunks(size).all(|bytes| bytes.len() == size && is_character(code(bytes)))
    };
    match tag {
        BOOLEAN if !matches!(value, [0 | 0xff]) => Err(BAD_BOOLEAN),
        INTEGER | ENUMERATED => integer(value),
        BIT_STRING => bit_string(value),
        NULL if !value.is_empty() => Err(NOT_DER),
        OBJECT => object(value),
        UTF8 => characters(std::str::from_utf8(value).is_ok_and(|text| text.chars().all(|c| is_character(c.into())))),
        BMP_STRING => characters(of_size(2)),
        UNIVERSAL_STRING => characters(of_size(4)),
        UTC_TIME => time_of(value, true),
        GENERALIZED_TIME => time_of(value, false),
        _ => Ok(()),
    }
}

/// Whether this is a character of Unicode that may be interchanged: no surrogate, no noncharacter.
fn is_character(code: u32) -> bool {
    char::from_u32(code).is_some() && code & 0xfffe != 0xfffe && !(0xfdd0..=0xfdef).contains(&code)
}

fn integer(value: &[u8]) -> Result<(), Refused> {
    if is_integer(value) { Ok(()) } else { Err(BAD_INTEGER) }
}

fn bit_string(value: &[u8]) -> Result<(), Refused> {
    match value {
        [0, ..] => Ok(()),
        [unused @ 1..=7, .., last] if last.trailing_zeros() >= u32::from(*unused) => Ok(()),
        _ => Err(BAD_BITS),
    }
}

fn object(value: &[u8]) -> Result<(), Refused> {
    if is_object(value) { Ok(()) } else { Err(BAD_OBJECT) }
}

fn time(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let (tag, value) = fields.next()?;
    match tag {
        UTC_TIME => time_of(value, true),
        GENERALIZED_TIME => time_of(value, false),
        _ => Err(BAD_TIME),
    }
}

/// `YYMMDDhhmmssZ`, where an offset may stand for the `Z`, or `YYYYMMDDhhmmssZ`.
fn time_of(value: &[u8], short: bool) -> Result<(), Refused> {
    let digits = if short { 2 } else { 4 };
    let (moment, zone) = value.split_at_checked(digits + 10).ok_or(BAD_TIME)?;
    let is_offset = |offset: &[u8]| {
        let number = std::str::from_utf8(offset).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        number.and_then(|text| text.parse::<u32>().ok()).is_some_and(|number| number / 100 < 24 && number % 100 < 60)
    };
    let is_zone = match zone {
        b"Z" => true,
        [b'+' | b'-', offset @ ..] => short && offset.len() == 4 && is_offset(offset),
        _ => false,
    };
    if is_zone && unix_time(moment, digits).is_some() { Ok(()) } else { Err(BAD_TIME) }
}

/// Elements that follow each other.
struct Fields<'a>(Reader<'a>);

impl<'a> Fields<'a> {
    fn new(der: &'a [u8]) -> Self {
        Self(Reader::new(der))
    }

    /// Tag and value of the next one. A tag that says that there is nothing is not used.
    fn next(&mut self) -> Result<(u8, &'a [u8]), Refused> {
        self.0.any().filter(|(tag, _)| tag & !CONSTRUCTED != 0).ok_or(NOT_DER)
    }

    /// Whether the next one has this tag.
    fn at(&self, tag: u8) -> bool {
        self.0.is(tag)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, wanted: u8) -> Result<&'a [u8], Refused> {
        let (tag, value) = self.next()?;
        if tag == wanted { Ok(value) } else { Err(UNEXPECTED) }
    }

    fn enter(&mut self, wanted: u8) -> Result<Self, Refused> {
        self.take(wanted).map(Self::new)
    }

    fn end(&self) -> Result<(), Refused> {
        if self.is_empty() { Ok(()) } else { Err(EXCESS) }
    }
}
