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

/// The certificates in a text, one after the other, so that only one of them need be in memory in its parsed form.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Result<X509, PemError>> {
    let mut rest = Some(text);
    (1..).map_while(move |position| {
        let text = rest.take()?;
        let block = &text[text.find(BEGIN)?..];
        let malformed = PemError::Malformed { position };
        let Some(end) = block.find(END).map(|at| at + END.len()) else { return Some(Err(malformed)) };
        rest = Some(&block[end..]);
        Some(X509::from_pem(&block.as_bytes()[..end]).map_err(|_| malformed))
    })
}
