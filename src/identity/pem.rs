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
}

/// Reads every certificate of a PEM text, whatever stands between the blocks.
///
/// Blocks are cut out by their markers first, because files in the field lack the newline between two of them.
///
/// # Errors
/// When there is none, or one of them is malformed.
pub fn certificates(text: &str) -> Result<Vec<X509>, PemError> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let position = found.len() + 1;
        let malformed = PemError::Malformed { position };
        let block = &rest[start..];
        let end = block.find(END).ok_or(malformed.clone())? + END.len();
        found.push(X509::from_pem(&block.as_bytes()[..end]).map_err(|_| malformed)?);
        rest = &block[end..];
    }
    if found.is_empty() { Err(PemError::Empty) } else { Ok(found) }
}
