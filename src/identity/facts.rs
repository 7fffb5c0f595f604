use std::fmt::Write as _;

use openssl::{
    sha::sha256,
    x509::{X509NameRef, X509Ref},
};

use super::{pem::blocks, validity::validity};
use crate::bounded::foreign_text;

/// Characters of a name that are told.
const NAME: usize = 128;

/// What everybody may know of a certificate that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its serial number in lower-case hexadecimal.
    pub serial: String,
    /// Whom it is for, cut and made fit for one line.
    pub subject: String,
    /// Who signed it, likewise.
    pub issuer: String,
    /// Its NotBefore in Unix seconds.
    pub not_before: i64,
    /// Its NotAfter in Unix seconds.
    pub not_after: i64,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
    /// Whether it is no certificate but a CRL, with ThisUpdate and NextUpdate as its life, and the SHA-256 of its PEM.
    pub is_crl: bool,
}

impl CertificateFacts {
    /// Of each certificate in a PEM text, in its order; what cannot be read is left out.
    pub fn from_pem(text: &str) -> Vec<Self> {
        blocks(text).flatten().filter_map(|certificate| Self::new(&certificate)).collect()
    }

    fn new(certificate: &X509Ref) -> Option<Self> {
        let (not_before, not_after) = validity(certificate);
        Some(Self {
            serial: serial(certificate),
            subject: name(certificate.subject_name()),
            issuer: name(certificate.issuer_name()),
            not_before,
            not_after,
            fingerprint: sha256(&certificate.to_der().ok()?),
            is_crl: false,
        })
    }

    /// The SHA-256 of its DER in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        hexadecimal(&self.fingerprint)
    }
}

/// A certificate's serial number in lower-case hexadecimal.
pub(super) fn serial(certificate: &X509Ref) -> String {
    let bytes = certificate.serial_number().to_bn().map(|number| number.to_vec()).unwrap_or_default();
    // Zero has no bytes.
    if bytes.is_empty() { "00".to_owned() } else { hexadecimal(&bytes) }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `O=Istio, CN=root`.
pub(super) fn name(name: &X509NameRef) -> String {
    let parts: Vec<_> = name
        .entries()
        .map(|entry| {
            let value = entry.data().to_string().unwrap_or_default();
            format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
        })
        .collect();
    foreign_text(&parts.join(", "), NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use testkit::development_ca::{Leaf, Pki};

    #[test]
    fn the_facts_are_those_of_the_certificates() {
        let pki = Pki::new("facts");
        let issued = pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
        let facts = CertificateFacts::from_pem(&format!("{}{}", issued.chain_pem, pki.root_pem()));
        let (leaf, root) = (&facts[0], facts.last().unwrap());
        assert_eq!(leaf.serial, serial(&super::super::certificates(&issued.chain_pem).unwrap()[0]));
        assert!((3600..4000).contains(&(leaf.not_after - leaf.not_before)), "{leaf:?}");
        assert_eq!(root.issuer, root.subject);
        assert!(root.subject.contains("facts"), "{}", root.subject);
        assert_eq!(root.fingerprint().len(), 64);
    }

    #[test]
    fn what_is_no_certificate_is_left_out() {
        assert_eq!(CertificateFacts::from_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []);
        assert_eq!(CertificateFacts::from_pem(""), []);
    }
}
