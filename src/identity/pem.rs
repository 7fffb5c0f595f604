use std::iter;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use openssl::{error::ErrorStack, x509::X509};

use super::{
    anchors::Candidate,
    der::{CERTIFICATE, Weight},
    recent, strict,
};
use crate::{bounded::UTF_16, budget};

pub(super) const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
pub(super) const END: &str = "-----END CERTIFICATE-----";

/// Certificates that a chain may have: far more than any has, and as many as there is room for.
const MOST: usize = 16;
/// Characters of one certificate: 16 KiB of DER. Those in the field have one or two.
pub(super) const MOST_TEXT: usize = 22 * 1024;
pub(super) const MOST_DER: usize = MOST_TEXT / 4 * 3;
/// Elements of its structure; an ordinary certificate has some hundred and thirty. Each name in it is one, and each
/// takes a hundred times its bytes once it is parsed.
const MOST_ELEMENTS: usize = 512;
/// The same of all certificates of a chain, which are kept.
const MOST_ELEMENTS_OF_A_CHAIN: usize = MOST * 160;
/// The same in words, of a trust anchor.
pub(super) const TOO_LARGE: &str = "is too large: the limits are 16 KiB and 512 ASN.1 elements (names and the like)";

/// What OpenSSL takes for base64.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is not a series of certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no certificate in it.
    #[error("it holds no PEM certificate")]
    Empty,
    /// It holds them in another form.
    #[error("it holds no PEM certificate that can be read: {0}")]
    Form(&'static str),
    /// One of the blocks cannot be read.
    #[error("certificate {position} in it cannot be parsed")]
    Malformed {
        /// Which one, counted from 1.
        position: usize,
    },
    /// One of the blocks is none that Envoy could read: it would refuse all that comes with it.
    #[error("certificate {position} in it cannot be parsed by Envoy: it {reason}")]
    Refused {
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It holds certificates, and none of them can be a trust anchor.
    #[error("certificate {position} in it {reason}")]
    NoAnchor {
        /// The first of them, counted from 1.
        position: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the blocks is larger than any certificate, or says more.
    #[error(
        "certificate {position} in it is too large: the limits are {} KiB and {MOST_ELEMENTS} ASN.1 elements (names \
         and the like), and {MOST_ELEMENTS_OF_A_CHAIN} in a whole chain",
        MOST_TEXT / 1024 * 3 / 4
    )]
    TooLarge {
        /// Which one, counted from 1.
        position: usize,
    },
    /// The file cannot be read.
    #[error("{0}")]
    File(String),
    /// It holds more than a chain may have.
    #[error("it holds more than {MOST} certificates")]
    TooMany,
    /// There is no room for what it holds.
    #[error("not enough arena memory for certificate {position} and those after it; raise SDS_SHIM_ARENA_KIB")]
    NoRoom {
        /// The first that found none, counted from 1.
        position: usize,
    },
}

/// Reads every certificate of a PEM text, whatever stands between the blocks.
///
/// # Errors
/// When there is none, there are too many, one of them is malformed or too large, or there is no room for it.
pub fn certificates(text: &str) -> Result<Vec<X509>, PemError> {
    let mut chain = Chain::default();
    chain.add(text)?;
    Ok(chain.certificates)
}

/// The certificates of several texts, with the limits of one chain.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) certificates: Vec<X509>,
    elements: usize,
}

impl Chain {
    /// Adds those of a text; positions are told within it.
    ///
    /// # Errors
    /// As for [`certificates`].
    pub(super) fn add(&mut self, text: &str) -> Result<(), PemError> {
        self.add_all(blocks(text).map(|block| block.map(Candidate::Block))).map_err(|error| explain(error, text))
    }

    /// The same of what was read already.
    ///
    /// # Errors
    /// As for [`certificates`].
    pub(super) fn add_all(
        &mut self,
        candidates: impl IntoIterator<Item = Result<Candidate, PemError>>,
    ) -> Result<(), PemError> {
        let mut position = 0;
        for candidate in candidates {
            position += 1;
            if self.certificates.len() == MOST {
                return Err(PemError::TooMany);
            }
            let candidate = candidate?;
            let weight = Weight::of(candidate.der()).ok_or(PemError::Malformed { position })?;
            self.elements += weight.elements;
            if self.elements > MOST_ELEMENTS_OF_A_CHAIN {
                return Err(PemError::TooLarge { position });
            }
            // Those before this one are kept in their parsed form.
            if !budget::has_room_for_certificate(weight.pieces(CERTIFICATE)) {
                return Err(PemError::NoRoom { position });
            }
            // The first is a leaf, which never comes again.
            let parse = if self.certificates.is_empty() { parsed } else { recent::parsed };
            self.certificates.push(parse(candidate.der()).ok_or(PemError::Malformed { position })?);
        }
        if position == 0 { Err(PemError::Empty) } else { Ok(()) }
    }
}

/// The same with what helps, where the text that it came of has one of the forms that are often found.
pub(super) fn explain(error: PemError, text: &str) -> PemError {
    match (error, form(text)) {
        (PemError::Empty | PemError::Malformed { .. }, Some(form)) => PemError::Form(form),
        (PemError::NoAnchor { position, reason }, Some(form)) if reason == UNPARSABLE => {
            PemError::NoAnchor { position, reason: format!("{reason}: {form}") }
        }
        (error, _) => error,
    }
}

/// What helps with a text of which a certificate cannot be read, if it has one of the forms that are often found.
fn form(text: &str) -> Option<&'static str> {
    let count = |what: &str| text.matches(what).count();
    let has = |what: &str| text.contains(what);
    match () {
        () if has("\0") => Some(UTF_16),
        () if has(TRUSTED) => {
            Some("TRUSTED CERTIFICATE is OpenSSL's own format; convert it to CERTIFICATE (openssl x509 -in FILE)")
        }
        () if has("-----BEGIN X509 CERTIFICATE-----") => {
            Some("X509 CERTIFICATE is an obsolete label; convert it to CERTIFICATE (openssl x509 -in FILE)")
        }
        () if has("-----BEGIN PKCS7-----") => {
            Some("a PKCS7 block is not a certificate; extract those in it (openssl pkcs7 -print_certs -in FILE)")
        }
        () if has("CERTIFICATE-----\\n") => {
            Some("its line breaks are written as \\n; write real ones (printf '%b' \"$(cat FILE)\")")
        }
        () if text.trim_start().starts_with("LS0tLS1CRUdJTi") => {
            Some("it is base64-encoded PEM; decode it (base64 -d FILE)")
        }
        () if count(BEGIN) > count(END) => Some("a block has no END line; the text is truncated"),
        () => None,
    }
}

/// What is wrong with a block that is no certificate.
pub(super) const UNPARSABLE: &str = "cannot be parsed";
const TRUSTED: &str = "-----BEGIN TRUSTED CERTIFICATE-----";

/// A certificate before it is parsed, for which there is room.
pub(super) struct Block {
    der: Vec<u8>,
}

impl Block {
    /// Its DER.
    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// The same, and no more of it.
    pub(super) fn into_der(self) -> Vec<u8> {
        self.der
    }
}

/// The certificates in a text, one after the other, so that only one of them need be in memory in its parsed form; in
/// the place of one that cannot be taken, why.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Result<Block, PemError>> {
    let look = |(index, cut): (usize, Option<&str>)| match cut {
        Some(text) => block(text, index + 1),
        None => Err(PemError::Malformed { position: index + 1 }),
    };
    cut(text, BEGIN, END).enumerate().map(look)
}

/// The certificate in a block, if it can be taken.
pub(super) fn block(text: &str, position: usize) -> Result<Block, PemError> {
    if text.len() > MOST_TEXT {
        return Err(PemError::TooLarge { position });
    }
    der(decode(text, BEGIN, END).ok_or(PemError::Malformed { position })?, position)
}

/// The certificate in this DER, if it can be taken.
pub(super) fn der(der: Vec<u8>, position: usize) -> Result<Block, PemError> {
    let weight = Weight::of(&der).ok_or(PemError::Malformed { position })?;
    match weight.elements {
        elements if elements > MOST_ELEMENTS || weight.size > MOST_DER => Err(PemError::TooLarge { position }),
        _ if !budget::has_room_for_certificate(weight.pieces(CERTIFICATE)) => Err(PemError::NoRoom { position }),
        _ => Ok(Block { der: strictly(der).map_err(|reason| PemError::Refused { position, reason })? }),
    }
}

/// A certificate as Envoy can read it, without what may follow it.
///
/// # Errors
/// What is wrong with it.
fn strictly(mut der: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    let read = strict::check(&der).or_else(|reason| {
        // OpenSSL writes the shell around what is signed anew, and it may be nothing but that.
        der = parsed(&der).and_then(|certificate| certificate.to_der().ok()).ok_or(reason)?;
        strict::check(&der)
    });
    der.truncate(read?);
    Ok(der)
}

pub(super) fn parsed(der: &[u8]) -> Option<X509> {
    let certificate = X509::from_der(der).ok();
    // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
    drop(ErrorStack::get());
    certificate
}

/// The content of a block; `None` when it is no base64, or there is no room for it.
///
/// Not by OpenSSL's reader of PEM, which asks whoever sits at the terminal for the passphrase of a block that says it
/// is encrypted.
pub(super) fn decode(block: &str, begin: &str, end: &str) -> Option<Vec<u8>> {
    let content = block.strip_prefix(begin)?.strip_suffix(end)?;
    let mut base64 = Vec::new();
    base64.try_reserve_exact(content.len()).ok()?;
    base64.extend(content.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Vec::new();
    der.try_reserve_exact(base64.len() / 4 * 3 + 3).ok()?;
    LENIENT.decode_vec(&base64, &mut der).ok()?;
    Some(der)
}

/// The same in portions, for a block of which there is no room for a further copy.
pub(super) fn decode_lines(block: &str, begin: &str, end: &str) -> Option<Vec<u8>> {
    const PORTION: usize = 1024;
    let content = block.strip_prefix(begin)?.strip_suffix(end)?;
    let mut der = Vec::new();
    der.try_reserve_exact(content.len() / 4 * 3 + 3).ok()?;
    let mut portion = Vec::with_capacity(PORTION);
    for byte in content.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        portion.push(byte);
        if portion.len() == PORTION {
            LENIENT.decode_vec(&portion, &mut der).ok()?;
            portion.clear();
        }
    }
    LENIENT.decode_vec(&portion, &mut der).ok()?;
    Some(der)
}

/// Every block of a PEM text between these markers, and `None` for one at the end that is cut off.
///
/// Blocks are cut out by their markers first, because files in the field lack the newline between two of them.
pub(super) fn cut<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = Option<&'a str>> {
    let mut rest = text;
    iter::from_fn(move || {
        let block = &rest[rest.find(begin)?..];
        let Some(end) = block.find(end).map(|at| at + end.len()) else {
            rest = "";
            return Some(None);
        };
        rest = &block[end..];
        Some(Some(&block[..end]))
    })
}
