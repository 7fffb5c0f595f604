use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    pkey::PKey,
    sign::Verifier,
    x509::{X509, X509NameRef, X509Ref, X509VerifyResult},
};

use super::{RevocationList, Scope};

/// Who may have signed a revocation list: what is known of a CA without its certificate.
#[derive(Clone, Debug)]
pub struct CrlSigner {
    name: [u8; 32],
    told: String,
    issuer: [u8; 32],
    /// As DER: parsed, it would take a multiple of the memory.
    key: Vec<u8>,
    key_id: Option<Vec<u8>>,
    serial: Vec<u8>,
    signs_lists: bool,
    is_root: bool,
}

impl CrlSigner {
    /// All of these certificates.
    pub fn of(certificates: impl IntoIterator<Item = X509>) -> Vec<Self> {
        let signers = certificates.into_iter().filter_map(|certificate| Self::new(&certificate).ok()).collect();
        // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
        drop(ErrorStack::get());
        signers
    }

    pub(in crate::identity) fn new(certificate: &X509Ref) -> Result<Self, ErrorStack> {
        use openssl::x509::X509KeyUsage;
        let usage = certificate.key_usage();
        Ok(Self {
            name: canonical(certificate.subject_name()),
            told: crate::identity::facts::name(certificate.subject_name()),
            issuer: canonical(certificate.issuer_name()),
            key: certificate.public_key()?.public_key_to_der()?,
            key_id: certificate.subject_key_id().map(|id| id.as_slice().to_vec()),
            serial: certificate.serial_number().to_bn()?.to_vec(),
            signs_lists: usage.is_none_or(|usage| usage.contains(X509KeyUsage::CRL_SIGN)),
            is_root: certificate.issued(certificate) == X509VerifyResult::OK,
        })
    }

    /// Its name, cut and made fit for one line.
    pub fn name(&self) -> &str {
        &self.told
    }

    /// Whether it signed its own certificate: of an anchor that did not, nobody can look whether it is revoked.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Whether this one issued the certificate of that.
    pub fn issued(&self, other: &Self) -> bool {
        self.name == other.issuer
    }

    pub(super) fn is_named(&self, name: &[u8; 32]) -> bool {
        self.name == *name
    }

    /// Whether a list that Envoy can use tells whether CA certificates of this one are revoked, or leaves of it.
    pub fn is_covered(&self, lists: &[impl AsRef<RevocationList>], authorities: bool) -> bool {
        let without = if authorities { Scope::Leaves } else { Scope::Authorities };
        lists.iter().map(AsRef::as_ref).any(|list| list.name == self.name && list.parts.scope != without)
    }

    /// Why a list that bears this name is none of this key, if it is not.
    pub(super) fn refuses(&self, list: &RevocationList) -> Option<&'static str> {
        let parts = &list.parts;
        let serial = parts.issuer_serial.as_deref().map(|serial| serial.strip_prefix(&[0]).unwrap_or(serial));
        match (&parts.key_id, &self.key_id) {
            (Some(wanted), Some(key_id)) if wanted != key_id => return Some("names another key of its issuer"),
            _ if serial.is_some_and(|serial| serial != self.serial) => {
                return Some("names another certificate of its issuer");
            }
            _ if !self.signs_lists => return Some("is of a CA that must not sign lists (keyUsage lacks cRLSign)"),
            _ => {}
        }
        let part = |range: &std::ops::Range<usize>| list.der.get(range.clone()).unwrap_or_default();
        let verified = self.verify(part(&parts.algorithm), part(&parts.signature), part(&parts.signed));
        drop(ErrorStack::get());
        (verified == Some(false)).then_some("has a wrong signature")
    }

    /// Whether the signature holds; `None` of an algorithm that we do not know.
    fn verify(&self, algorithm: &[u8], signature: &[u8], signed: &[u8]) -> Option<bool> {
        let (digest, key) = (digest(algorithm)?, PKey::public_key_from_der(&self.key).ok()?);
        let verifier = match digest {
            Some(digest) => Verifier::new(digest, &key),
            None => Verifier::new_without_digest(&key),
        };
        Some(verifier.and_then(|mut verifier| verifier.verify_oneshot(signature, signed)).unwrap_or(false))
    }
}

/// The digest of a signature algorithm, `None` for Ed25519, which has its own.
fn digest(algorithm: &[u8]) -> Option<Option<MessageDigest>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    // A sequence that begins with the object identifier.
    let oid = algorithm.get(4..4 + usize::from(*algorithm.get(3)?))?;
    if oid == ED25519 {
        return Some(None);
    }
    let (last, family) = oid.split_last()?;
    Some(Some(match (family, last) {
        (RSA, 5) => MessageDigest::sha1(),
        (RSA, 11) | (ECDSA, 2) => MessageDigest::sha256(),
        (RSA, 12) | (ECDSA, 3) => MessageDigest::sha384(),
        (RSA, 13) | (ECDSA, 4) => MessageDigest::sha512(),
        _ => return None,
    }))
}

/// What two names have in common that are the same to those who verify: neither case nor blanks count.
pub(super) fn canonical(name: &X509NameRef) -> [u8; 32] {
    let mut text = String::new();
    for entry in name.entries() {
        let value = entry.data().to_string().unwrap_or_default().to_ascii_lowercase();
        let value: Vec<_> = value.split_ascii_whitespace().collect();
        text.push_str(&format!("{}\0{}\0", entry.object(), value.join(" ")));
    }
    openssl::sha::sha256(text.as_bytes())
}
