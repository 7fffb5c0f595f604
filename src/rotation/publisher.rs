use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::{
    revocation::{Revocation, Selection},
    roots::{Room, Roots},
};
use crate::{
    budget,
    clock::{self, WallTimer},
    config::RootsConfig,
    files::MountedCertificate,
    identity::{
        AnchorNames, Issued, KeySpec, PeerTrust, RevocationList, SvidError, TOO_MANY_NAMES, TrustAnchor, TrustBundle,
        TrustDomain, X509Svid, same_domains,
    },
    status::{RevocationFacts, Workload},
    store::{CERTIFICATE, Content, ROOTS, SecretStore, Validation},
};

/// How long a certificate waits for the roots that it needs to be acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// Serves the union of all trust anchors: it is pushed when a source changes, without a call to the CA. And the
/// certificate, each after the anchors that it needs.
pub(super) struct Publisher {
    store: Arc<SecretStore>,
    shown: Arc<Workload>,
    state: Mutex<State>,
    deadlines: Notify,
}

struct State {
    roots: Roots,
    /// Where trust domains are told apart: those of our own certificates, each with the end of the last one.
    held: BTreeMap<TrustDomain, i64>,
    /// Ours now.
    own: TrustDomain,
    /// The anchors of the files that are for one trust domain.
    domains: Vec<(TrustDomain, TrustBundle)>,
    revocation: Revocation,
    /// When the lists are to be looked at again (Unix seconds).
    lists_until: Option<i64>,
    /// What is published; without mounted files nothing before the first answer of the CA.
    published: Option<Published>,
    /// Whether a certificate has waited for it: whoever never answers delays one certificate and no more.
    waited_for: bool,
    /// Whether a certificate is mounted, so that anchors are published before the CA answers.
    mounted: bool,
    /// Whether the CA has issued a certificate.
    by_ca: bool,
    told: BTreeSet<String>,
}

/// A certificate with its key, as they are served.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory.
pub(super) fn content(svid: &X509Svid, key: &KeySpec) -> Result<Content, SvidError> {
    Ok(Content::TlsCertificate { chain: svid.chain()?, key: svid.key_pem(key)? })
}

/// What is compared to tell whether something has changed.
struct Published {
    roots: TrustBundle,
    domains: Vec<(TrustDomain, TrustBundle)>,
    lists: Vec<[u8; 32]>,
    whole_chain: bool,
}

impl Publisher {
    pub(super) fn new(store: Arc<SecretStore>, config: &RootsConfig, mounted: bool, shown: Arc<Workload>) -> Self {
        let state = State {
            roots: Roots::new(config.grace),
            held: BTreeMap::new(),
            own: config.trust_domain.clone(),
            domains: Vec::new(),
            revocation: Revocation::new(config),
            lists_until: None,
            published: None,
            waited_for: true,
            mounted,
            by_ca: false,
            told: BTreeSet::new(),
        };
        Self { store, shown, state: Mutex::new(state), deadlines: Notify::new() }
    }

    /// Publishes what the CA issued. Peers may already present certificates of a new root, and they must be able to
    /// verify ours: so where the roots change, they are pushed first, and the certificate follows once every Envoy
    /// has taken them. `domain` is the trust domain of the certificate.
    pub(super) async fn publish(&self, issued: &Issued, domain: TrustDomain, certificate: Content) {
        let (_, not_after) = issued.svid.validity();
        let (changed, wait) = {
            let mut state = self.lock();
            issued.bad_anchors.told().iter().for_each(|bad| state.tell(format!("among the CA's roots, {bad}")));
            match issued.bad_anchors.len() - issued.bad_anchors.told().len() {
                0 => {}
                others => state.tell(format!("among the CA's roots, {others} more skipped")),
            }
            state.held.insert(domain, not_after);
            state.roots.answered(issued.roots.clone(), issued.anchor, not_after, clock::now());
            state.revocation.issued_by(issued.svid.parts().1.to_vec());
            let switches = !std::mem::replace(&mut state.by_ca, true);
            let changed = state.change(clock::now(), &self.shown);
            // Also when nothing is new in this answer: a file may have brought the root a moment ago.
            let waited_for = std::mem::replace(&mut state.waited_for, true);
            (changed, self.store.holds(CERTIFICATE) && (switches || !waited_for))
        };
        self.deadlines.notify_one();
        let certificate = (CERTIFICATE, certificate, not_after);
        let mut contents: Vec<_> = changed.map(|roots| (ROOTS, roots, i64::MAX)).into_iter().collect();
        if wait {
            self.store.publish(contents.drain(..));
            self.acknowledged().await;
        }
        contents.push(certificate);
        self.store.publish(contents);
    }

    /// Anchors that no source has any more, each with its last moment (Unix seconds).
    pub(super) fn leaving(&self) -> Vec<(Arc<TrustAnchor>, i64)> {
        self.lock().roots.leaving()
    }

    /// The same as it was before a crash; they are published with the certificate.
    pub(super) fn still_leaving(&self, leaving: Vec<(Arc<TrustAnchor>, i64)>) {
        self.lock().roots.still_leaving(leaving);
    }

    /// The anchors that peers are verified with.
    pub(super) fn anchors(&self) -> TrustBundle {
        self.lock().roots.bundle()
    }

    /// Whether the CA has issued a certificate, so that what is mounted is served no more.
    pub(super) fn by_ca(&self) -> bool {
        self.lock().by_ca
    }

    /// Publishes a mounted certificate, likewise after the trust anchors, which from then on vouch for its trust domain
    /// as well. Answers `false`, and publishes nothing, once the CA has issued one.
    pub(super) async fn publish_mounted(&self, mounted: MountedCertificate) -> bool {
        let MountedCertificate { content, not_after, trust_domain, issuers, identity: _ } = mounted;
        {
            let mut state = self.lock();
            if state.by_ca {
                return false;
            }
            state.revocation.issued_by(issuers);
            let is_new = trust_domain.is_some_and(|domain| state.held.insert(domain, not_after) != Some(not_after));
            if is_new || !state.revocation.is_empty() {
                self.push(&mut state, clock::now());
                self.deadlines.notify_one();
            }
        }
        if self.store.holds(CERTIFICATE) {
            self.acknowledged().await;
        }
        let mut state = self.lock();
        if !state.by_ca {
            state.roots.mounted(not_after);
            self.store.publish([(CERTIFICATE, content, not_after)]);
        }
        !state.by_ca
    }

    /// Publishes the trust anchors where they have changed.
    fn push(&self, state: &mut State, now: i64) {
        if let Some(roots) = state.change(now, &self.shown) {
            self.store.publish([(ROOTS, roots, i64::MAX)]);
        }
    }

    /// Waits until every Envoy has answered to the anchors that are held.
    async fn acknowledged(&self) {
        if tokio::time::timeout(ACKNOWLEDGED_WITHIN, self.store.roots_taken()).await.is_err() {
            warn!("new trust anchors not acknowledged within 5 s; sending the certificate that may need them");
        }
    }

    /// Follows the files, and drops anchors whose grace is over, for as long as it is polled.
    pub(super) async fn follow(&self, mut files: watch::Receiver<PeerTrust>) -> Infallible {
        // By the wall clock, over suspends: anchors end by it.
        let timer = WallTimer::new()
            .inspect_err(|error| warn!("no wall-clock timer, so expired trust anchors may still be served: {error}"));
        loop {
            let now = clock::now();
            let in_files = files.borrow_and_update().clone();
            let next = {
                let mut state = self.lock();
                state.roots.in_files(in_files.roots, now);
                state.revocation.in_file(in_files.revocation);
                (state.domains, state.own) = (in_files.domains, in_files.own);
                state.held.retain(|_, end| *end > now);
                let left = state.held.iter().filter(|(domain, _)| **domain != state.own).map(|(_, end)| *end);
                let anchors = state.domains.iter().flat_map(|(_, bundle)| bundle.anchors());
                let anchors = anchors.map(|anchor| anchor.not_after()).filter(|end| *end > now);
                let ends = left.chain(anchors).min();
                let next = state.roots.expire(now).into_iter().chain(ends).min();
                if state.by_ca || state.mounted {
                    self.push(&mut state, now);
                }
                next.into_iter().chain(state.lists_until).min()
            };
            tokio::select! {
                changed = files.changed() => if changed.is_err() {
                    // Nobody watches files.
                    future::pending::<()>().await;
                },
                () = self.deadlines.notified() => {}
                () = until(timer.as_ref().ok(), next, now) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(timer: Option<&WallTimer>, moment: Option<i64>, now: i64) {
    match (moment, timer) {
        (None, _) => future::pending().await,
        (Some(moment), Some(timer)) => timer.at(clock::deadline(moment)).await,
        (Some(moment), None) => tokio::time::sleep(Duration::from_secs((moment - now).max(1).cast_unsigned())).await,
    }
}

impl State {
    /// What is to be published, if it differs from what is.
    fn change(&mut self, now: i64, shown: &Workload) -> Option<Content> {
        for anchor in self.roots.take_ended() {
            let end = clock::rfc3339(anchor.not_after());
            self.tell(format!("trust anchor {} expired at {end} and is no longer served", anchor.subject()));
        }
        let bundle = self.roots.bundle();
        let (domains, nameless) = self.told_apart(&bundle, now);
        if nameless > 0 {
            self.tell(format!("{nameless} trust anchors are left out: {TOO_MANY_NAMES}"));
        }
        let Selection { lists, whole_chain, gap, trouble, told, next } = self.select_lists(&bundle, now);
        told.into_iter().for_each(|what| self.tell(what));
        if let Some(gap) = gap.filter(|_| !domains.is_empty()) {
            self.tell(format!(
                "no CRL was issued by {gap}: Envoy's SPIFFE validator always checks whole chains, and rejects peers below this CA"
            ));
        }
        self.lists_until = next;
        let closed = trouble.is_some() && !self.revocation.fail_open();
        shown.revocation(RevocationFacts {
            served: lists.len(),
            whole_chain,
            trouble,
            is_missed: closed && (lists.is_empty() || self.published.is_none()),
        });
        if closed && self.published.is_none() {
            return None;
        }
        let digests: Vec<_> = lists.iter().map(|list| *list.digest()).collect();
        // Nothing that Envoy could use: it refuses an empty list, and goes on with the one that has ended.
        let is_empty = bundle.anchors().is_empty();
        let is_published = self.published.as_ref().is_some_and(|held| {
            let same_lists = held.lists == digests && held.whole_chain == whole_chain;
            held.roots.is_same_set(&bundle) && same_domains(&held.domains, &domains) && same_lists
        });
        if is_empty || is_published {
            return None;
        }
        if !lists.is_empty() && !RevocationList::have_room(&lists, !domains.is_empty()) {
            self.tell("not enough memory to serve the revocation lists; retrying every second".to_owned());
            self.lists_until = Some(now + 1);
            return None;
        }
        self.tell_left_out(now);
        let anchors = bundle.clone();
        let told_apart = domains.iter().map(|(domain, bundle)| (domain.to_string(), bundle.clone())).collect();
        self.waited_for = false;
        if !lists.is_empty() && self.published.as_ref().is_none_or(|held| held.lists != digests) {
            let checks = if whole_chain { "whole chains" } else { "leaf certificates alone" };
            info!("revocation lists: {} served, and Envoy checks {checks}", lists.len());
        }
        self.published = Some(Published { roots: bundle, domains, lists: digests, whole_chain });
        Some(Content::ValidationContext(Validation { anchors, lists, whole_chain, domains: told_apart }))
    }

    fn tell_left_out(&mut self, now: i64) {
        match self.roots.left_out(now) {
            None => {}
            Some((count, Room::Arena)) => self.tell(format!(
                "{count} trust anchors are left out: together they may take {} KiB, half of the arena; raise \
                 SDS_SHIM_ARENA_KIB",
                budget::for_anchors() / 1024
            )),
            Some((count, Room::Names)) => self.tell(format!("{count} trust anchors are left out: {TOO_MANY_NAMES}")),
        }
    }

    /// Trust domains with the anchors that vouch for them, those of our own certificates first; none where they are not
    /// told apart. Where we moved from another one, our anchors vouch for that as well until our last certificate of it
    /// has ended: peers may not have moved yet. And how many anchors Envoy's validator has no room to name.
    fn told_apart(&self, ours: &TrustBundle, now: i64) -> (Vec<(TrustDomain, TrustBundle)>, usize) {
        if self.domains.is_empty() {
            return (Vec::new(), 0);
        }
        // Extended, here and elsewhere, because a set that is collected brings the code for sorting a list, some 4 KiB.
        let mut own = BTreeSet::new();
        own.extend(self.held.keys().chain([&self.own]));
        let of_files = |domain| self.domains.iter().filter(move |(other, _)| other == domain);
        let with_ours = own.iter().map(|domain| {
            let anchors = ours.anchors().iter().chain(of_files(*domain).flat_map(|(_, bundle)| bundle.anchors()));
            ((*domain).clone(), TrustBundle::new(anchors.cloned().collect()))
        });
        let others = self.domains.iter().filter(|(domain, _)| !own.contains(domain)).cloned();
        let lasting = |(domain, bundle): (TrustDomain, TrustBundle)| {
            let lasting = bundle.anchors().iter().filter(|anchor| anchor.not_after() > now);
            (domain, TrustBundle::new(lasting.cloned().collect()))
        };
        let lasting: Vec<_> = with_ours.chain(others).map(lasting).collect();
        let (mut names, mut nameless, mut all) = (AnchorNames::default(), 0, Vec::new());
        for (domain, bundle) in &lasting {
            let (bundle, left_out) = names.take_all(bundle);
            nameless += left_out;
            // A domain without anchors would make Envoy refuse all of it.
            if !bundle.anchors().is_empty() {
                all.push((domain.clone(), bundle));
            }
        }
        (all, nameless)
    }

    /// The lists of revoked certificates that are served beside these anchors.
    fn select_lists(&mut self, bundle: &TrustBundle, now: i64) -> Selection {
        let anchors = if self.revocation.is_empty() { Vec::new() } else { bundle.signers() };
        self.revocation.select(&anchors, anchors.len() == bundle.anchors().len(), now)
    }

    /// Warns of the same thing once.
    fn tell(&mut self, what: String) {
        const REMEMBERED: usize = 64;
        if !self.told.contains(&what) {
            warn!("{what}");
            if self.told.len() < REMEMBERED {
                self.told.insert(what);
            }
        }
    }
}
