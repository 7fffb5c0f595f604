use std::{collections::BTreeSet, iter};

use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    sha::sha256,
    stack::Stack,
    x509::{
        X509, X509PurposeId, X509Ref, X509StoreContext, X509VerifyResult,
        store::X509StoreBuilder,
        verify::{X509VerifyFlags, X509VerifyParam},
    },
};

use crate::clock::rfc3339;

use super::{
    anchors::Answer,
    bundle::{BadAnchors, TrustBundle, may_have_issued},
    facts::{Certificates, serial},
    key::KeySpec,
    leaf,
    pem::{Chain, PemError},
    sides::lacking,
    spiffe::SpiffeId,
    validity::validity,
};

/// Names that a leaf may have. An X.509-SVID has one URI; some CAs add DNS names of the workload.
const MOST_NAMES: usize = 32;

/// Why a CA's answer is not published. Whatever was held before stays.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The answer has no leaf or no root: Citadel's list ends with the root bundle.
    #[error("the CA returned {0} element(s); expected at least a leaf and a root bundle")]
    TooFewElements(usize),
    /// An element is not what it should be.
    #[error("element {position} of the CA's answer: {cause}")]
    Element {
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        cause: PemError,
    },
    /// The leaf is for somebody else's key.
    #[error("the leaf's public key does not match our CSR")]
    ForeignKey,
    /// The leaf carries another identity.
    #[error("the leaf's URI SAN is {found:?}, our SPIFFE ID is {wanted}")]
    ForeignIdentity {
        /// What the leaf carries.
        found: Vec<String>,
        /// What it should carry.
        wanted: String,
    },
    /// The leaf carries more names than any workload has.
    #[error("the leaf has {0} SANs; expected one URI and a few DNS names, at most {MOST_NAMES}")]
    TooManyNames(usize),
    /// The leaf could sign other certificates.
    #[error("the leaf is a CA certificate")]
    LeafIsCa,
    /// The leaf cannot be used on both sides of mutual TLS.
    #[error("the leaf's {0}")]
    KeyUsage(&'static str),
    /// Its extended key usage lacks this one.
    #[error("the leaf's extended key usage lacks {0}")]
    ExtendedKeyUsage(&'static str),
    /// Envoy does not take the leaf.
    #[error("the leaf {0}: Envoy refuses it")]
    Leaf(&'static str),
    /// A certificate's time has not come or is over; times are Unix seconds.
    #[error("a certificate is valid from {} to {}, but it is now {}", rfc3339(*.not_before), rfc3339(*.not_after), rfc3339(*.now))]
    Time {
        /// Its NotBefore.
        not_before: i64,
        /// Its NotAfter.
        not_after: i64,
        /// The local clock.
        now: i64,
    },
    /// The chain does not lead to a root of the answer.
    #[error("the chain does not lead to a root in the answer: {0}")]
    Chain(String),
    /// OpenSSL failed.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

/// A verified X.509-SVID: leaf, intermediates and the key.
pub struct X509Svid {
    leaf: X509,
    intermediates: Vec<X509>,
    key: PKey<Private>,
    validity: (i64, i64),
}

/// What a CA's answer holds, verified.
pub struct Issued {
    /// The certificate.
    pub svid: X509Svid,
    /// The roots that came with it.
    pub roots: TrustBundle,
    /// Roots of the answer that are left out.
    pub bad_anchors: BadAnchors,
    /// Digest of the root that the chain leads to.
    pub anchor: [u8; 32],
    /// Whether the leaf has no extended key usage.
    pub for_any_use: bool,
}

impl X509Svid {
    /// Turns Citadel's answer into an SVID and the trust bundle, or says why it must not be used: the key is ours,
    /// the identity is ours, it works on both sides of mutual TLS, it cannot sign, it is not over at `now` (Unix
    /// seconds) and its chain leads to a root of the answer. Its time may be yet to come: [`X509Svid::validity`].
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn verify(answer: Answer, key: &PKey<Private>, id: &SpiffeId, now: i64) -> Result<Issued, SvidError> {
        let (count, mut chain) = (answer.len(), answer.into_elements());
        let Some(roots) = chain.pop().filter(|_| !chain.is_empty()) else {
            return Err(SvidError::TooFewElements(count));
        };
        let at = |index: usize| move |cause| SvidError::Element { position: index + 1, cause };
        let mut parsed = Chain::default();
        let elements = chain.len();
        for (index, element) in chain.into_iter().enumerate() {
            parsed.add_all(element).map_err(at(index))?;
        }
        let mut others = parsed.certificates;
        let leaf = others.remove(0);
        let ours = leaf.public_key()?.public_eq(key);
        drop(ErrorStack::get());
        if !ours {
            return Err(SvidError::ForeignKey);
        }
        check_identity(&leaf, id)?;
        check_usage(&leaf)?;
        leaf::check(&leaf).map_err(SvidError::Leaf)?;
        let (not_before, not_after) = validity(&leaf);
        // Nor may it be over before it begins.
        if not_after <= now.max(not_before) {
            return Err(SvidError::Time { not_before, not_after, now });
        }
        // Only those that the path can lead to: parsed, a hundred of them would fill the arena.
        let (mut issuers, below) =
            (Vec::new(), iter::once(&leaf).chain(&others).map(AsRef::as_ref).collect::<Vec<_>>());
        let mut look = |anchor: &X509| issuers.extend(may_have_issued(anchor, &below).then(|| anchor.clone()));
        let (roots, bad_anchors) = TrustBundle::from_answer(roots, now, &mut look).map_err(at(elements))?;
        let path = last_path(&leaf, &others, issuers, now.max(not_before));
        // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
        drop(ErrorStack::get());
        let path = path?;
        let not_after = end_of(&path);
        let Some((anchor, path)) = path.split_last() else {
            return Err(SvidError::Chain("it is empty".to_owned()));
        };
        let intermediates = in_order(path, others, &roots, now)?;
        let svid = Self { leaf, intermediates, key: key.clone(), validity: (not_before, not_after) };
        let for_any_use = svid.leaf.extended_key_usage().is_none();
        Ok(Issued { svid, roots, bad_anchors, anchor: sha256(&anchor.to_der()?), for_any_use })
    }

    /// Looks at the paths to these anchors, at `now` (Unix seconds). Answers whether [`X509Svid::validity`] is another one.
    pub fn look_at_paths(&mut self, anchors: &TrustBundle, now: i64) -> bool {
        let below: Vec<_> = iter::once(&self.leaf).chain(&self.intermediates).map(AsRef::as_ref).collect();
        let path = last_path(&self.leaf, &self.intermediates, anchors.issuers_of(&below), now.max(self.validity.0));
        drop(ErrorStack::get());
        let before = self.validity.1;
        self.validity.1 = path.map_or(before, |path| end_of(&path));
        self.validity.1 != before
    }

    /// Whether what vouches for the leaf ends before it does, so that another path may last longer.
    pub fn ends_before_its_leaf(&self) -> bool {
        self.validity.1 < validity(&self.leaf).1
    }

    /// NotBefore and NotAfter that count, in Unix seconds: the leaf's start, and the end of the path from leaf to anchor
    /// that lasts longest. A path is over with the first of its certificates, since peers verify all of it.
    pub fn validity(&self) -> (i64, i64) {
        self.validity
    }

    /// Leaf and intermediates, leaf first, for Envoy.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn chain(&self) -> Result<Certificates, ErrorStack> {
        Certificates::of(iter::once(&self.leaf).chain(&self.intermediates).map(AsRef::as_ref))
    }

    /// The key as PEM, for Envoy.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn key_pem(&self, spec: &KeySpec) -> Result<Vec<u8>, ErrorStack> {
        spec.to_pem(&self.key)
    }

    /// The leaf's serial number in lower-case hexadecimal.
    pub fn serial(&self) -> String {
        serial(&self.leaf)
    }

    /// Leaf, intermediates and key, for a TLS client.
    pub fn parts(&self) -> (&X509, &[X509], &PKey<Private>) {
        (&self.leaf, &self.intermediates, &self.key)
    }
}

fn check_identity(leaf: &X509Ref, id: &SpiffeId) -> Result<(), SvidError> {
    let names = leaf.subject_alt_names();
    let uris: Vec<_> = names.iter().flatten().filter_map(|name| name.uri()).collect();
    let count = names.iter().flatten().count();
    if count > MOST_NAMES {
        return Err(SvidError::TooManyNames(count));
    }
    if uris == [id.as_str()] {
        return Ok(());
    }
    let found = uris.into_iter().take(4).map(|uri| uri.chars().take(256).collect()).collect();
    Err(SvidError::ForeignIdentity { found, wanted: id.to_string() })
}

fn check_usage(leaf: &X509Ref) -> Result<(), SvidError> {
    use openssl::x509::X509KeyUsage;
    // Without the extension every use is allowed (RFC 5280, section 4.2.1.3).
    let usage = leaf.key_usage().unwrap_or(X509KeyUsage::DIGITAL_SIGNATURE);
    if usage.contains(X509KeyUsage::KEY_CERT_SIGN) || locked::is_ca(leaf) {
        return Err(SvidError::LeafIsCa);
    }
    // Each side of a handshake signs it, and Envoy looks whether the other was allowed to.
    if !usage.contains(X509KeyUsage::DIGITAL_SIGNATURE) {
        return Err(SvidError::KeyUsage("key usage lacks digitalSignature"));
    }
    // An SVID should have the extension and need not (X509-SVID, section 4.4).
    lacking(leaf).next().map_or(Ok(()), |side| Err(SvidError::ExtendedKeyUsage(side.name)))
}

/// The first end of these, Unix seconds.
fn end_of(path: &[X509]) -> i64 {
    path.iter().map(|certificate| validity(certificate).1).min().unwrap_or(i64::MIN)
}

/// The certificates from the leaf to the root where they last longest: a root that is renewed under its key is there
/// twice, and OpenSSL takes any.
fn last_path(leaf: &X509, others: &[X509], mut roots: Vec<X509>, now: i64) -> Result<Vec<X509>, SvidError> {
    /// More ways than there are lead to no CA.
    const WAYS: usize = 16;
    let mut others = others.to_vec();
    let mut best = usable_path(leaf, &others, &roots, now)?;
    let mut path = best.clone();
    for _ in 0..WAYS {
        let end = end_of(&path);
        // The next one without what ends first.
        let Some(first) = path.iter().skip(1).find(|one| validity(one).1 == end).cloned() else { break };
        others.retain(|other| *other != first);
        roots.retain(|root| *root != first);
        let Ok(next) = usable_path(leaf, &others, &roots, now) else { break };
        path = next;
        if end_of(&path) > end_of(&best) {
            best.clone_from(&path);
        }
    }
    Ok(best)
}

/// A path that both sides of a connection can use: an intermediate may be good for one alone.
fn usable_path(leaf: &X509, others: &[X509], roots: &[X509], now: i64) -> Result<Vec<X509>, SvidError> {
    let verify = |purpose| verified_path(leaf, others, roots.to_vec(), now, Some(purpose));
    let path = verify(X509PurposeId::SSL_SERVER)?;
    // Its signatures are verified once more only where the other purpose may lead another way.
    if path.iter().all(|one| lacking(one).next().is_none()) { Ok(path) } else { verify(X509PurposeId::SSL_CLIENT) }
}

/// The certificates from the leaf to the root, as OpenSSL builds them: each of them is good for this purpose.
pub(super) fn verified_path(
    leaf: &X509,
    others: &[X509],
    roots: Vec<X509>,
    now: i64,
    purpose: Option<X509PurposeId>,
) -> Result<Vec<X509>, SvidError> {
    let mut param = X509VerifyParam::new()?;
    param.set_time(now);
    if let Some(purpose) = purpose {
        param.set_purpose(purpose)?;
    }
    // As Envoy does: whatever the CA calls a root is one, also an intermediate.
    param.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let mut store = X509StoreBuilder::new()?;
    for root in roots {
        store.add_cert(root)?;
    }
    store.set_param(&param)?;
    let mut untrusted = Stack::new()?;
    for other in others {
        untrusted.push(other.clone())?;
    }
    let mut context = X509StoreContext::new()?;
    let (path, error) = context.init(&store.build(), leaf, &untrusted, |context| {
        let path = context.verify_cert()?.then(|| context.chain().map(|chain| chain.iter().map(ToOwned::to_owned)));
        Ok((path.flatten().map(|path| path.collect::<Vec<_>>()), context.error()))
    })?;
    path.ok_or_else(|| {
        match others.iter().map(|other| validity(other)).find(|(from, to)| !(*from..*to).contains(&now)) {
            Some((not_before, not_after)) => SvidError::Time { not_before, not_after, now },
            None => SvidError::Chain(error.error_string().to_owned()),
        }
    })
}

/// The intermediates as they are sent: those of the verified path in its order, then what else may help a peer with
/// other roots; nothing twice, no roots, nothing whose time is over.
fn in_order(path: &[X509], others: Vec<X509>, roots: &TrustBundle, now: i64) -> Result<Vec<X509>, ErrorStack> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for (index, certificate) in path.iter().chain(&others).enumerate() {
        let is_new = seen.insert(certificate.to_der()?);
        let is_leaf = index == 0;
        let is_root = certificate.issued(certificate) == X509VerifyResult::OK && roots.contains(certificate);
        if is_new && !is_leaf && !is_root && validity(certificate).1 > now {
            kept.push(certificate.clone());
        }
    }
    Ok(kept)
}
