use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

use openssl::{
    error::ErrorStack,
    sha::sha256,
    x509::{X509, X509NameRef, X509Ref, store::X509StoreBuilderRef},
};

use crate::clock::rfc3339;

use super::{
    pem::{self, PemError},
    validity::{is_ca, validity},
};

/// Whether one more certificate may be parsed, which takes about a dozen KiB. What is kept free of clients is for this
/// as well; a full arena would end the process.
fn has_room() -> bool {
    locked::has_room(&[64 * 1024])
}

/// A trust anchor, as its DER: parsed it would take a multiple of the memory.
#[derive(Debug)]
pub struct TrustAnchor {
    der: Vec<u8>,
    digest: [u8; 32],
    not_after: i64,
}

impl TrustAnchor {
    /// The anchor, if it can serve as one at `now` (Unix seconds).
    fn new(certificate: &X509Ref, now: i64) -> Result<Self, String> {
        let der = certificate.to_der().map_err(|error| error.to_string())?;
        let (_, not_after) = validity(certificate);
        if not_after <= now {
            return Err(format!("expired at {}", rfc3339(not_after)));
        }
        // Version 1 has no extensions that could say so.
        if certificate.version() > 0 && !is_ca(certificate).map_err(|error| error.to_string())? {
            return Err("is not a CA certificate".to_owned());
        }
        Ok(Self { digest: sha256(&der), der, not_after })
    }

    /// SHA-256 of its DER.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Its NotAfter in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Bytes of its DER.
    pub fn size(&self) -> usize {
        self.der.len()
    }
}

/// An anchor that was left out of a bundle, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("certificate {position} is left out: it {reason}")]
pub struct BadAnchor {
    /// Which one, counted from 1.
    pub position: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// The trust anchors of a trust domain, without duplicates, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct TrustBundle {
    anchors: Vec<Arc<TrustAnchor>>,
}

impl TrustBundle {
    /// Reads a PEM text with one or more anchors at `now` (Unix seconds). Those that cannot be used are left out and
    /// told beside the bundle.
    ///
    /// # Errors
    /// When it holds no certificate, or none that can be used.
    pub fn from_pem(text: &str, now: i64) -> Result<(Self, Vec<BadAnchor>), PemError> {
        let (mut anchors, mut bad) = (Vec::new(), Vec::new());
        for (index, certificate) in pem::blocks(text).enumerate() {
            if !has_room() {
                return Err(PemError::NoRoom { position: index + 1 });
            }
            let anchor = certificate.map_err(|_| "cannot be parsed".to_owned());
            match anchor.and_then(|certificate| TrustAnchor::new(&certificate, now)) {
                Ok(anchor) => anchors.push(Arc::new(anchor)),
                Err(reason) => bad.push(BadAnchor { position: index + 1, reason }),
            }
        }
        match (anchors.is_empty(), bad.first()) {
            (false, _) => Ok((Self::new(anchors), bad)),
            (true, None) => Err(PemError::Empty),
            (true, Some(BadAnchor { position, reason })) => {
                Err(PemError::NoAnchor { position: *position, reason: reason.clone() })
            }
        }
    }

    /// A bundle of these, each once.
    pub fn new(mut anchors: Vec<Arc<TrustAnchor>>) -> Self {
        let mut seen = BTreeSet::new();
        anchors.retain(|anchor| seen.insert(anchor.digest));
        Self { anchors }
    }

    /// The anchors in their order.
    pub fn anchors(&self) -> &[Arc<TrustAnchor>] {
        &self.anchors
    }

    /// Whether both hold the same anchors, in whatever order.
    pub fn is_same_set(&self, other: &Self) -> bool {
        let digests = |bundle: &Self| bundle.anchors.iter().map(|anchor| anchor.digest).collect::<BTreeSet<_>>();
        digests(self) == digests(other)
    }

    /// The anchors as PEM, each ending with a newline.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn to_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        let mut text = Vec::new();
        for anchor in &self.anchors {
            text.extend_from_slice(&X509::from_der(&anchor.der)?.to_pem()?);
        }
        Ok(text)
    }

    /// Adds the anchors to what OpenSSL verifies against; `false` when there was no room for all of them.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn add_to(&self, store: &mut X509StoreBuilderRef) -> Result<bool, ErrorStack> {
        self.add_those(store, |_| true)
    }

    /// Adds those that one of these certificates names as its issuer, or that are one of them.
    ///
    /// # Errors
    /// As for [`TrustBundle::add_to`].
    pub(super) fn add_issuers(&self, store: &mut X509StoreBuilderRef, of: &[&X509Ref]) -> Result<bool, ErrorStack> {
        // As OpenSSL compares names: in their canonical form, not byte by byte.
        let same = |one: &X509NameRef, other| one.try_cmp(other).is_ok_and(Ordering::is_eq);
        self.add_those(store, |anchor| {
            let name = anchor.subject_name();
            of.iter().any(|one| same(name, one.issuer_name()) || same(name, one.subject_name()))
        })
    }

    fn add_those(
        &self,
        store: &mut X509StoreBuilderRef,
        wanted: impl Fn(&X509Ref) -> bool,
    ) -> Result<bool, ErrorStack> {
        for anchor in &self.anchors {
            if !has_room() {
                return Ok(false);
            }
            let anchor = X509::from_der(&anchor.der)?;
            if wanted(&anchor) {
                store.add_cert(anchor)?;
            }
        }
        Ok(true)
    }

    /// Whether this certificate is one of them.
    pub fn contains(&self, certificate: &X509Ref) -> bool {
        certificate.to_der().is_ok_and(|der| self.anchors.iter().any(|anchor| anchor.der == der))
    }
}
