use std::path::Path;

use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    sha::sha256,
    x509::X509,
};

use super::error::CaError;
use crate::{
    bounded, clock,
    identity::{KeyText, X509Svid, certificates, unix_seconds},
};

/// Bytes of one file in PROV_CERT.
const MAX_FILE: usize = 64 * 1024;

/// A certificate that we present to the CA.
pub struct ClientCertificate {
    pub(super) leaf: X509,
    pub(super) intermediates: Vec<X509>,
    pub(super) key: PKey<Private>,
}

impl ClientCertificate {
    /// Our own current certificate.
    pub fn own(svid: &X509Svid) -> Self {
        let (leaf, intermediates, key) = svid.parts();
        Self { leaf: leaf.clone(), intermediates: intermediates.to_vec(), key: key.clone() }
    }

    /// Reads `key.pem` and `cert-chain.pem` of PROV_CERT.
    ///
    /// # Errors
    /// When one of them cannot be read or parsed, they do not belong together, or the certificate has expired, so that
    /// presenting it would only fail.
    pub fn provisioned(directory: &Path, now: i64) -> Result<Self, CaError> {
        let problem = |file: &str, cause: &dyn std::fmt::Display| {
            CaError::Provisioned(format!("{}: {cause}", directory.join(file).display()))
        };
        let read = |file: &str| {
            let path = directory.join(file);
            KeyText::open(&path, MAX_FILE).map_err(|error| CaError::Provisioned(bounded::describe(&path, &error)))
        };
        let mut chain = certificates(&read("cert-chain.pem")?.0).map_err(|error| problem("cert-chain.pem", &error))?;
        let key = read("key.pem")?.1.parse().map_err(|error| problem("key.pem", &error))?;
        let leaf = chain.remove(0);
        let unreadable = |error: ErrorStack| problem("cert-chain.pem", &error);
        if !leaf.public_key().map_err(&unreadable)?.public_eq(&key) {
            return Err(problem("key.pem", &"the key does not belong to cert-chain.pem"));
        }
        let not_after = unix_seconds(leaf.not_after()).map_err(unreadable)?;
        if not_after <= now {
            return Err(problem("cert-chain.pem", &format!("it expired at {}", clock::rfc3339(not_after))));
        }
        Ok(Self { leaf, intermediates: chain, key })
    }

    /// SHA-256 of the leaf, to recognise a certificate that was refused.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.leaf.to_der().map(|der| sha256(&der)).unwrap_or_default()
    }
}
