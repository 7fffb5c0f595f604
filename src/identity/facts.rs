use std::{fmt::Write as _, sync::Arc};

use openssl::{
    base64,
    error::ErrorStack,
    sha::sha256,
    x509::{X509NameRef, X509Ref},
};

use super::validity::validity;
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
    /// Whether it is no certificate but a CRL, with ThisUpdate and NextUpdate as its life, and the SHA-256 of its
    /// DER.
    pub is_crl: bool,
}

impl CertificateFacts {
    /// Those of a certificate, given its DER as well.
    pub(super) fn new(certificate: &X509Ref, der: &[u8]) -> Self {
        let (not_before, not_after) = validity(certificate);
        Self {
            serial: serial(certificate),
            subject: name(certificate.subject_name()),
            issuer: name(certificate.issuer_name()),
            not_before,
            not_after,
            fingerprint: sha256(der),
            is_crl: false,
        }
    }

    /// The SHA-256 of its DER in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        hexadecimal(&self.fingerprint)
    }
}

/// Certificates as PEM, each ending with a newline, and what everybody may know of them: to parse them anew for that
/// would take longer than all else that is done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// The text.
    pub pem: Vec<u8>,
    /// Of each, in the order of the text.
    pub facts: Vec<Arc<CertificateFacts>>,
}

impl Certificates {
    /// A text that is only passed on, of which nothing is known.
    pub fn unread(pem: Vec<u8>) -> Self {
        Self { pem, facts: Vec::new() }
    }

    /// These, in their order.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub(super) fn of<'a>(certificates: impl IntoIterator<Item = &'a X509Ref>) -> Result<Self, ErrorStack> {
        let mut all = Self::default();
        for certificate in certificates {
            let der = certificate.to_der()?;
            all.push(&der, Arc::new(CertificateFacts::new(certificate, &der)));
        }
        Ok(all)
    }

    pub(super) fn push(&mut self, der: &[u8], facts: Arc<CertificateFacts>) {
        push_pem(der, CERTIFICATE, &mut self.pem);
        self.facts.push(facts);
    }
}

/// Bytes that are the 64 characters of a line (RFC 7468, section 2).
const LINE: usize = 48;
/// What stands in the markers of a certificate.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";

/// Writes DER as PEM, ending with a newline.
pub(super) fn push_pem(der: &[u8], label: &str, pem: &mut Vec<u8>) {
    let marker = |pem: &mut Vec<u8>, which: &str| {
        [b"-----", which.as_bytes(), b" ", label.as_bytes(), b"-----\n"]
            .iter()
            .for_each(|part| pem.extend_from_slice(part));
    };
    marker(pem, "BEGIN");
    for line in der.chunks(LINE) {
        pem.extend_from_slice(base64::encode_block(line).as_bytes());
        pem.push(b'\n');
    }
    marker(pem, "END");
}

/// Bytes of that.
pub(super) fn pem_len(der: &[u8], label: &str) -> usize {
    let markers = "-----BEGIN -----\n".len() + "-----END -----\n".len() + 2 * label.len();
    markers + der.len().div_ceil(3) * 4 + der.len().div_ceil(LINE)
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
    let mut text = foreign_text(&parts.join(", "), NAME);
    // Hundreds of anchors have one.
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::super::certificates;
    use super::*;
    use std::time::Duration;
    use testkit::development_ca::{Leaf, Pki};

    #[test]
    fn text_and_facts_are_those_of_the_certificates() {
        let pki = Pki::new("facts");
        let issued = pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
        let text = format!("{}{}", issued.chain_pem, pki.root_pem());
        let parsed = certificates(&text).unwrap();
        let of_them = Certificates::of(parsed.iter().map(AsRef::as_ref)).unwrap();
        assert_eq!(String::from_utf8(of_them.pem).unwrap(), text, "as OpenSSL writes it");
        let facts = of_them.facts;
        let (leaf, root) = (&facts[0], facts.last().unwrap());
        assert_eq!(facts.len(), parsed.len());
        assert_eq!(leaf.serial, serial(&parsed[0]));
        assert!((3600..4000).contains(&(leaf.not_after - leaf.not_before)), "{leaf:?}");
        assert_eq!(root.issuer, root.subject);
        assert!(root.subject.contains("facts"), "{}", root.subject);
        assert_eq!(root.fingerprint().len(), 64);
    }
}
