use std::{cmp::Ordering, collections::BTreeSet, fmt, sync::Arc};

use openssl::x509::{X509, X509NameRef, X509Ref};

use crate::{budget, clock::rfc3339};

use super::{
    crl::CrlSigner,
    der::{CERTIFICATE, Weight},
    facts::{CertificateFacts, Certificates},
    pem::{self, Block, PemError},
    validity::is_ca,
};

/// What is wrong with a block that is no certificate.
const UNPARSABLE: &str = "cannot be parsed";

/// A trust anchor, as its DER: parsed it would take a multiple of the memory.
#[derive(Debug)]
pub struct TrustAnchor {
    der: Vec<u8>,
    facts: Arc<CertificateFacts>,
}

impl TrustAnchor {
    /// The anchor, if it can serve as one at `now` (Unix seconds).
    fn new(certificate: &X509Ref, der: Vec<u8>, now: i64) -> Result<Self, String> {
        let facts = CertificateFacts::new(certificate, &der);
        if facts.not_after <= now {
            return Err(format!("expired at {}", rfc3339(facts.not_after)));
        }
        // Version 1 has no extensions that could say so.
        if certificate.version() > 0 && !is_ca(certificate).map_err(|error| error.to_string())? {
            return Err("is not a CA certificate".to_owned());
        }
        Ok(Self { der, facts: Arc::new(facts) })
    }

    /// SHA-256 of its DER.
    pub fn digest(&self) -> &[u8; 32] {
        &self.facts.fingerprint
    }

    /// Its NotAfter in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.facts.not_after
    }

    /// Whom it names.
    pub fn subject(&self) -> &str {
        &self.facts.subject
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

/// The anchors that were left out of a bundle: the first few, and how many there are. A text may have thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadAnchors {
    first: Vec<BadAnchor>,
    count: usize,
}

impl BadAnchors {
    /// As many as are told.
    const TOLD: usize = 4;

    fn push(&mut self, bad: impl FnOnce() -> BadAnchor) {
        self.count += 1;
        if self.first.len() < Self::TOLD {
            self.first.push(bad());
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first few of them.
    pub fn told(&self) -> &[BadAnchor] {
        &self.first
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }
}

impl fmt::Display for BadAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bad) in self.first.iter().enumerate() {
            write!(f, "{}{bad}", if index == 0 { "" } else { "; " })?;
        }
        match self.count - self.first.len() {
            0 => Ok(()),
            others => write!(f, "; and {others} more"),
        }
    }
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
    pub fn from_pem(text: &str, now: i64) -> Result<(Self, BadAnchors), PemError> {
        Self::from_pem_with(text, now, |_| {})
    }

    /// The same, and shows each of its anchors to `look` in its parsed form.
    ///
    /// # Errors
    /// As for [`TrustBundle::from_pem`].
    pub fn from_pem_with(text: &str, now: i64, mut look: impl FnMut(&X509)) -> Result<(Self, BadAnchors), PemError> {
        let (mut anchors, mut bad) = (Vec::new(), BadAnchors::default());
        for (index, block) in pem::blocks(text).enumerate() {
            let anchor = match block {
                Ok(block) => Self::anchor(block, now, &mut look),
                Err(error @ PemError::NoRoom { .. }) => return Err(error),
                Err(PemError::TooLarge { .. }) => Err(pem::TOO_LARGE.to_owned()),
                Err(PemError::Refused { reason, .. }) => Err(format!("{UNPARSABLE} by Envoy: it {reason}")),
                Err(_) => Err(UNPARSABLE.to_owned()),
            };
            match anchor {
                Ok(anchor) => anchors.push(Arc::new(anchor)),
                Err(reason) => bad.push(|| BadAnchor { position: index + 1, reason }),
            }
        }
        match (anchors.is_empty(), bad.first.first()) {
            (false, _) => Ok((Self::new(anchors), bad)),
            (true, None) => Err(PemError::Empty),
            (true, Some(BadAnchor { position, reason })) => {
                Err(PemError::NoAnchor { position: *position, reason: reason.clone() })
            }
        }
    }

    fn anchor(block: Block, now: i64, look: &mut impl FnMut(&X509)) -> Result<TrustAnchor, String> {
        let certificate = block.parse().ok_or(UNPARSABLE)?;
        let anchor = TrustAnchor::new(&certificate, block.into_der(), now)?;
        look(&certificate);
        Ok(anchor)
    }

    /// A bundle of these, each once.
    pub fn new(mut anchors: Vec<Arc<TrustAnchor>>) -> Self {
        let mut seen = BTreeSet::new();
        anchors.retain(|anchor| seen.insert(*anchor.digest()));
        Self { anchors }
    }

    /// The anchors in their order.
    pub fn anchors(&self) -> &[Arc<TrustAnchor>] {
        &self.anchors
    }

    /// Whether both hold the same anchors, in whatever order.
    pub fn is_same_set(&self, other: &Self) -> bool {
        let digests = |bundle: &Self| bundle.anchors.iter().map(|anchor| *anchor.digest()).collect::<BTreeSet<_>>();
        digests(self) == digests(other)
    }

    /// The anchors as they are served.
    pub fn certificates(&self) -> Certificates {
        let mut all = Certificates::default();
        self.anchors.iter().for_each(|anchor| all.push(&anchor.der, Arc::clone(&anchor.facts)));
        all
    }

    /// The anchors as those who may sign revocation lists, as far as there is room to look at them.
    pub fn signers(&self) -> Vec<CrlSigner> {
        let has_room = |der: &&Vec<u8>| {
            Weight::of(der).is_some_and(|weight| budget::has_room_for_certificate(weight.pieces(CERTIFICATE)))
        };
        let ders = self.anchors.iter().map(|anchor| &anchor.der).filter(has_room);
        CrlSigner::of(ders.filter_map(|der| X509::from_der(der).ok()))
    }

    /// Whether this certificate is one of them.
    pub fn contains(&self, certificate: &X509Ref) -> bool {
        certificate.to_der().is_ok_and(|der| self.anchors.iter().any(|anchor| anchor.der == der))
    }
}

/// Whether `anchor` may have issued one of these certificates, or is one of them.
pub(super) fn may_have_issued(anchor: &X509Ref, of: &[&X509Ref]) -> bool {
    // As OpenSSL compares names: in their canonical form, not byte by byte.
    let same = |one: &X509NameRef, other| one.try_cmp(other).is_ok_and(Ordering::is_eq);
    let name = anchor.subject_name();
    of.iter().any(|one| same(name, one.issuer_name()) || same(name, one.subject_name()))
}
