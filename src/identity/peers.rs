use std::sync::Arc;

use super::{
    bundle::TrustBundle,
    crl::{CrlTrouble, RevocationList},
    spiffe::TrustDomain,
};

/// What peers are verified with, and where we belong, as the files have it.
#[derive(Clone, Debug, Default)]
pub struct PeerTrust {
    /// Our own trust domain.
    pub own: TrustDomain,
    /// Trust anchors of our own trust domain, or of all where they are not told apart.
    pub roots: TrustBundle,
    /// Certificates that no longer hold, as their issuers say.
    pub revocation: Revocation,
    /// Trust anchors of other trust domains, which vouch for these alone.
    pub domains: Vec<(TrustDomain, TrustBundle)>,
}

/// What a file of revocation lists holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Revocation {
    /// Its last good content.
    pub lists: Vec<Arc<RevocationList>>,
    /// Why that is not its content now.
    pub trouble: Option<CrlTrouble>,
}

impl PeerTrust {
    /// Whether both hold the same, where the order of anchors does not matter.
    pub fn is_same(&self, other: &Self) -> bool {
        self.own == other.own
            && self.roots.is_same_set(&other.roots)
            && self.revocation == other.revocation
            && same_domains(&self.domains, &other.domains)
    }
}

/// Whether these are the same trust domains with the same anchors.
pub fn same_domains(one: &[(TrustDomain, TrustBundle)], other: &[(TrustDomain, TrustBundle)]) -> bool {
    let same = |(one, other): (&(TrustDomain, TrustBundle), &(TrustDomain, TrustBundle))| {
        one.0 == other.0 && one.1.is_same_set(&other.1)
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}
