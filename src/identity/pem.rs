use openssl::x509::X509;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

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
}

/// Reads every certificate of a PEM text, whatever stands between the blocks.
///
/// # Errors
/// When there is none, or one of them is malformed.
pub fn certificates(text: &str) -> Result<Vec<X509>, PemError> {
    let found: Vec<X509> = blocks(text).collect::<Result<_, _>>()?;
    if found.is_empty() { Err(PemError::Empty) } else { Ok(found) }
}

/// Every certificate of a PEM text, and in its place what is none; each is parsed when it is its turn.
///
/// Blocks are cut out by their markers first, because files in the field lack the newline between two of them.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Result<X509, PemError>> {
    let (mut rest, mut position) = (text, 0);
    std::iter::from_fn(move || {
        let block = &rest[rest.find(BEGIN)?..];
        position += 1;
        let malformed = PemError::Malformed { position };
        let Some(end) = block.find(END).map(|at| at + END.len()) else {
            rest = "";
            return Some(Err(malformed));
        };
        rest = &block[end..];
        Some(X509::from_pem(&block.as_bytes()[..end]).map_err(|_| malformed))
    })
}
