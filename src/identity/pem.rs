use openssl::x509::X509;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Certificates that a chain may have: far more than any has, and as many as there is room for.
const MOST: usize = 16;

/// Why a text is not a series of certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no certificate in it.
    #[error("it holds no PEM certificate")]
    Empty,
    /// One of the blocks cannot be read.
    #[error("certificate {position} in it cannot be parsed")]
    Malformed {
        /// Which one, counted from 1.
        position: usize,
    },
    /// It holds certificates, and none of them can be a trust anchor.
    #[error("certificate {position} in it {reason}")]
    NoAnchor {
        /// The first of them, counted from 1.
        position: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It holds more than a chain may have.
    #[error("it holds more than {MOST} certificates")]
    TooMany,
    /// There is no room for what it holds.
    #[error("there is no room for certificate {position} in it and those that follow; SDS_SHIM_ARENA_KIB makes more")]
    NoRoom {
        /// The first that found none, counted from 1.
        position: usize,
    },
}

/// Reads every certificate of a PEM text, whatever stands between the blocks.
///
/// # Errors
/// When there is none, there are too many, or one of them is malformed.
pub fn certificates(text: &str) -> Result<Vec<X509>, PemError> {
    let found: Vec<X509> = blocks(text).take(MOST + 1).collect::<Result<_, _>>()?;
    if found.len() > MOST {
        return Err(PemError::TooMany);
    }
    if found.is_empty() { Err(PemError::Empty) } else { Ok(found) }
}

/// The certificates in a text, one after the other, so that only one of them need be in memory in its parsed form; in
/// the place of one that is none, that.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Result<X509, PemError>> {
    let parsed = |(at, block): (usize, Option<&str>)| {
        block.and_then(|block| X509::from_pem(block.as_bytes()).ok()).ok_or(PemError::Malformed { position: at + 1 })
    };
    cut(text, BEGIN, END).into_iter().enumerate().map(parsed)
}

/// Every block of a PEM text between these markers, and `None` for one at the end that is cut off.
///
/// Blocks are cut out by their markers first, because files in the field lack the newline between two of them.
pub(super) fn cut<'a>(text: &'a str, begin: &str, end: &str) -> Vec<Option<&'a str>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(begin) {
        let block = &rest[start..];
        let Some(end) = block.find(end).map(|at| at + end.len()) else {
            found.push(None);
            break;
        };
        found.push(Some(&block[..end]));
        rest = &block[end..];
    }
    found
}
