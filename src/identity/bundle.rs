use std::{cmp::Ordering, collections::BTreeSet, fmt, path::Path, sync::Arc};

use openssl::x509::{X509, X509NameRef, X509Ref};

use crate::budget;

use super::{
    anchors::in_der,
    anchors::{Candidate, Reading, in_file, start_of},
    crl::CrlSigner,
    der::{CERTIFICATE, Weight},
    facts::{self, CertificateFacts, Certificates, pem_len, push_pem},
    pem::{self, PemError},
};

/// A trust anchor, as its DER: parsed it would take a multiple of the memory.
#[derive(Debug)]
pub struct TrustAnchor {
    der: Vec<u8>,
    /// Where its subject is in that, and how long. No certificate has more than 16 KiB.
    name: (u16, u16),
    facts: Arc<CertificateFacts>,
}

impl TrustAnchor {
    /// The anchor, if it can serve as one, whenever that is.
    pub(super) fn new(certificate: &X509Ref, der: Vec<u8>) -> Result<Self, String> {
        // It was read with some to spare. Made shorter where it lies, each of hundreds would leave a hole behind it that
        // nothing fits into; so it moves, and the next one is read where this one was.
        let der = der.as_slice().to_vec();
        let facts = CertificateFacts::new(certificate, &der);
        // Version 1 has no extensions that could say so.
        if certificate.version() > 0 && !locked::is_ca(certificate) {
            return Err("is not a CA certificate".to_owned());
        }
        let subject = certificate.subject_name().to_der().map_err(|error| error.to_string())?;
        // A root's issuer is found first, which is the same.
        let start = der.windows(subject.len()).position(|bytes| bytes == subject).unwrap_or_default();
        let place = |number: usize| u16::try_from(number).map_err(|_| "is too large".to_owned());
        Ok(Self { name: (place(start)?, place(subject.len())?), der, facts: Arc::new(facts) })
    }

    /// Its subject in DER, as servers send it to clients whose certificates it may vouch for.
    pub fn name(&self) -> &[u8] {
        let (start, len) = (usize::from(self.name.0), usize::from(self.name.1));
        self.der.get(start..start + len).unwrap_or_default()
    }

    /// Its DER.
    pub fn der(&self) -> &[u8] {
        &self.der
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

    /// What everybody may know of it.
    pub fn facts(&self) -> Arc<CertificateFacts> {
        Arc::clone(&self.facts)
    }

    /// Writes it as PEM, ending with a newline.
    pub fn write_pem(&self, to: &mut Vec<u8>) {
        push_pem(&self.der, facts::CERTIFICATE, to);
    }

    /// Bytes of that.
    pub fn pem_len(&self) -> usize {
        pem_len(&self.der, facts::CERTIFICATE)
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        Self::size_of(&self.der)
    }

    /// Bytes that one with this DER takes.
    pub(super) fn size_of(der: &[u8]) -> usize {
        /// Of what is known of it besides, and of the bookkeeping.
        const BESIDES: usize = 384;
        der.len() + BESIDES
    }
}

/// An anchor that was left out of a bundle, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("certificate {position} skipped: it {reason}")]
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

    pub(super) fn push(&mut self, bad: impl FnOnce() -> BadAnchor) {
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
        let reading = Reading { now, room: |_| true, most: usize::MAX, keep: true, look: None };
        reading.read(in_text(text)).map_err(|error| pem::explain(error, text))
    }

    /// The same of an element of the CA's answer.
    pub(super) fn from_answer(
        element: Vec<Result<Candidate, PemError>>,
        now: i64,
        look: &mut dyn FnMut(&X509),
    ) -> Result<(Self, BadAnchors), PemError> {
        let room = budget::has_room_for_ca_anchor;
        Reading { now, room, most: usize::MAX, keep: true, look: Some(look) }.read(element.into_iter())
    }

    /// The same of certificates in DER, one after the other, as long as there is `room` for one of so many bytes.
    ///
    /// # Errors
    /// As for [`TrustBundle::from_pem`].
    pub fn from_der(der: &[u8], now: i64, room: fn(usize) -> bool) -> Result<(Self, BadAnchors), PemError> {
        Reading { now, room, most: budget::for_anchors_of_files(), keep: true, look: None }.read(in_der(der))
    }

    /// The same of a file, of which no more than one anchor is in memory beside those that are kept, as long as there is
    /// `room` for one of so many bytes.
    ///
    /// # Errors
    /// As for [`TrustBundle::from_pem`], and what is wrong with the file.
    pub fn from_file(file: &Path, now: i64, room: fn(usize) -> bool) -> Result<(Self, BadAnchors), PemError> {
        let reading = Reading { now, room, most: budget::for_anchors_of_files(), keep: true, look: None };
        reading.read(in_file(file)?).map_err(|error| pem::explain(error, &start_of(file)))
    }

    /// Shows each anchor of a file that can be used to `look` in its parsed form, and keeps none.
    ///
    /// # Errors
    /// As for [`TrustBundle::from_file`].
    pub fn look_at_file(file: &Path, now: i64, mut look: impl FnMut(&X509)) -> Result<(), PemError> {
        Self::pass_through(file, now, Some(&mut look))
    }

    /// Whether there is an anchor in a file that can be used. One that is in use already is not parsed for that.
    ///
    /// # Errors
    /// As for [`TrustBundle::from_file`].
    pub fn is_in_file(file: &Path, now: i64) -> Result<(), PemError> {
        Self::pass_through(file, now, None)
    }

    fn pass_through(file: &Path, now: i64, look: Option<&mut dyn FnMut(&X509)>) -> Result<(), PemError> {
        let reading = Reading { now, room: |_| true, most: usize::MAX, keep: false, look };
        let read = reading.read(in_file(file)?).map(|_| ());
        read.map_err(|error| pem::explain(error, &start_of(file)))
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
        let digests = |bundle: &Self| {
            let mut digests = BTreeSet::new();
            digests.extend(bundle.anchors.iter().map(|anchor| *anchor.digest()));
            digests
        };
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
        CrlSigner::of(self.parsed())
    }

    /// Those that may have issued one of these certificates, in their parsed form.
    pub fn issuers_of(&self, of: &[&X509Ref]) -> Vec<X509> {
        self.parsed().filter(|anchor| may_have_issued(anchor, of)).collect()
    }

    /// One after the other: parsed together, a hundred of them would fill the arena.
    fn parsed(&self) -> impl Iterator<Item = X509> {
        let has_room = |anchor: &&TrustAnchor| {
            Weight::of(&anchor.der).is_some_and(|weight| budget::has_room_for_certificate(weight.pieces(CERTIFICATE)))
        };
        self.anchors.iter().map(AsRef::as_ref).filter(has_room).filter_map(|anchor| pem::parsed(&anchor.der))
    }

    /// Whether this certificate is one of them.
    pub fn contains(&self, certificate: &X509Ref) -> bool {
        certificate.to_der().is_ok_and(|der| self.anchors.iter().any(|anchor| anchor.der == der))
    }
}

fn in_text(text: &str) -> impl Iterator<Item = Result<Candidate, PemError>> {
    pem::blocks(text).map(|block| block.map(Candidate::new))
}

/// Whether `anchor` may have issued one of these certificates, or is one of them.
pub fn may_have_issued(anchor: &X509Ref, of: &[&X509Ref]) -> bool {
    // As OpenSSL compares names: in their canonical form, not byte by byte.
    let same = |one: &X509NameRef, other| one.try_cmp(other).is_ok_and(Ordering::is_eq);
    let name = anchor.subject_name();
    of.iter().any(|one| same(name, one.issuer_name()) || same(name, one.subject_name()))
}
