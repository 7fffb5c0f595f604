use locked::Structure;
use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    x509::X509,
};

use super::{
    facts::Certificates,
    leaf,
    pem::{PemError, certificates},
    private_key::{KeyError, KeyText},
    spiffe::TrustDomain,
    validity::validity,
};

/// Why a key and a chain from files are not served.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The chain cannot be read.
    #[error("the certificate chain: {0}")]
    Chain(#[from] PemError),
    /// The key cannot be read.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// They are of two generations, or were never meant for each other.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// Envoy does not take the leaf.
    #[error("the leaf {0}: Envoy refuses it")]
    Leaf(&'static str),
    /// OpenSSL failed.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

/// A key and its certificate chain that somebody else has made.
pub struct Credential {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl Credential {
    /// Reads a chain, leaf first, and a key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn from_pem(chain: &str, key: &KeyText) -> Result<Self, CredentialError> {
        let mut chain = certificates(chain)?;
        let key = key.parse()?;
        // Where the leaf stands in a bundle is not fixed.
        let ours = chain.iter().position(|one| one.public_key().is_ok_and(|public| public.public_eq(&key)));
        drop(ErrorStack::get());
        let leaf = chain.remove(ours.ok_or(CredentialError::Mismatch)?);
        leaf::check(&leaf).map_err(CredentialError::Leaf)?;
        chain.insert(0, leaf);
        Ok(Self { chain, key })
    }

    /// The end of the leaf in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.chain.first().map_or(i64::MIN, |leaf| validity(leaf).1)
    }

    /// The trust domain in the leaf's URI SAN, if it has one.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        let names = self.chain.first()?.subject_alt_names()?;
        names.iter().find_map(|name| name.uri()?.strip_prefix("spiffe://")?.split('/').next()?.parse().ok())
    }

    /// The chain, leaf first.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn chain(&self) -> Result<Certificates, ErrorStack> {
        Certificates::of(self.chain.iter().map(AsRef::as_ref))
    }

    /// The key as PKCS#8 PEM.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn key_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        locked::write_private_key(&self.key, Structure::Pkcs8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use testkit::development_ca::{Issued, Leaf, Pki};

    fn issued() -> Issued {
        Pki::new("files").issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)))
    }

    fn key(text: &str) -> KeyText {
        KeyText::split(text.as_bytes(), text.len(), 1 << 16).unwrap().1
    }

    #[test]
    fn a_pair_is_read_and_written_in_order() {
        let issued = issued();
        let credential = Credential::from_pem(&issued.chain_pem, &key(&issued.key_pem)).unwrap();
        assert_eq!(String::from_utf8(credential.chain().unwrap().pem).unwrap(), issued.chain_pem);
        assert!(credential.key_pem().unwrap().starts_with(b"-----BEGIN PRIVATE KEY-----"));
    }

    #[test]
    fn one_file_may_hold_all() {
        let Issued { chain_pem, key_pem, .. } = issued();
        for bundle in [format!("{key_pem}{chain_pem}"), format!("{chain_pem}{key_pem}")] {
            let credential = Credential::from_pem(&bundle, &key(&bundle)).unwrap();
            assert_eq!(String::from_utf8(credential.chain().unwrap().pem).unwrap(), chain_pem);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (one, other) = (issued(), issued());
        let error = |chain: &str, text: &str| Credential::from_pem(chain, &key(text)).err().unwrap().to_string();
        assert!(error(&one.chain_pem, &other.key_pem).contains("does not belong"));
        assert!(error(&one.chain_pem, &one.chain_pem).contains("no PEM private key"));
        assert!(error(&one.key_pem, &one.key_pem).contains("the certificate chain"));
    }
}
