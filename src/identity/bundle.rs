use openssl::{
    error::ErrorStack,
    x509::{X509, X509Ref, store::X509StoreBuilderRef},
};

use super::pem::{PemError, certificates};

/// The trust anchors of a trust domain, without duplicates, in the order in which they came.
#[derive(Clone)]
pub struct TrustBundle {
    anchors: Vec<X509>,
}

impl TrustBundle {
    /// Reads a PEM text with one or more anchors.
    ///
    /// # Errors
    /// When it holds no certificate or a malformed one.
    pub fn from_pem(text: &str) -> Result<Self, PemError> {
        let mut anchors: Vec<X509> = Vec::new();
        for anchor in certificates(text)? {
            if !anchors.iter().any(|known| same(known, &anchor)) {
                anchors.push(anchor);
            }
        }
        Ok(Self { anchors })
    }

    /// The anchors as PEM, each ending with a newline.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn to_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        concatenated_pem(&self.anchors)
    }

    /// Adds the anchors to what OpenSSL verifies against.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn add_to(&self, store: &mut X509StoreBuilderRef) -> Result<(), ErrorStack> {
        self.anchors.iter().try_for_each(|anchor| store.add_cert(anchor.clone()))
    }
}

pub(super) fn concatenated_pem(certificates: &[X509]) -> Result<Vec<u8>, ErrorStack> {
    let mut text = Vec::new();
    for certificate in certificates {
        text.extend_from_slice(&certificate.to_pem()?);
    }
    Ok(text)
}

fn same(a: &X509Ref, b: &X509Ref) -> bool {
    matches!((a.to_der(), b.to_der()), (Ok(a), Ok(b)) if a == b)
}
