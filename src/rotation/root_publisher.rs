use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use tokio::sync::{Notify, watch};
use tracing::warn;

use super::roots::Roots;
use crate::{
    clock::{self, WallTimer},
    config::RootsConfig,
    files::MountedCertificate,
    identity::{Issued, PeerTrust, RevocationList, TrustBundle, TrustDomain, same_domains},
    store::{CERTIFICATE, Content, ROOTS, SecretStore, Validation, View},
};

/// How long a certificate waits for the roots that it needs to be acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// Serves the union of all trust anchors: it is pushed when a source changes, without a call to the CA. And the
/// certificate, each after the anchors that it needs.
pub(super) struct RootPublisher {
    store: Arc<SecretStore>,
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
    crls: Vec<Arc<RevocationList>>,
    /// Whether no CRL is served once one of them is too old.
    crl_fail_open: bool,
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

/// What is compared to tell whether something has changed.
struct Published {
    roots: TrustBundle,
    domains: Vec<(TrustDomain, TrustBundle)>,
    crl: Vec<u8>,
}

impl RootPublisher {
    pub(super) fn new(store: Arc<SecretStore>, config: &RootsConfig, mounted: bool) -> Self {
        let state = State {
            roots: Roots::new(config.grace),
            held: BTreeMap::new(),
            own: config.trust_domain.clone(),
            domains: Vec::new(),
            crls: Vec::new(),
            crl_fail_open: config.crl_fail_open,
            published: None,
            waited_for: true,
            mounted,
            by_ca: false,
            told: BTreeSet::new(),
        };
        Self { store, state: Mutex::new(state), deadlines: Notify::new() }
    }

    /// Publishes what the CA issued. Peers may already present certificates of a new root, and they must be able to
    /// verify ours: so where the roots change, they are pushed first, and the certificate follows once every Envoy
    /// has taken them. `domain` is the trust domain of the certificate.
    pub(super) async fn publish(&self, issued: &Issued, domain: TrustDomain, certificate: Content) {
        let (_, not_after) = issued.svid.validity();
        let (changed, wait) = {
            let mut state = self.lock();
            issued
                .bad_anchors
                .told()
                .iter()
                .for_each(|bad| state.tell(format!("of the roots that the CA answers, {bad}")));
            match issued.bad_anchors.len() - issued.bad_anchors.told().len() {
                0 => {}
                others => state.tell(format!("of the roots that the CA answers, {others} more are left out")),
            }
            state.held.insert(domain, not_after);
            state.roots.answered(issued.roots.clone(), issued.anchor, not_after, clock::now());
            let switches = !std::mem::replace(&mut state.by_ca, true);
            let changed = state.change(clock::now());
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

    /// Whether the CA has issued a certificate, so that what is mounted is served no more.
    pub(super) fn by_ca(&self) -> bool {
        self.lock().by_ca
    }

    /// Publishes a mounted certificate, likewise after the trust anchors, which from then on vouch for its trust domain
    /// as well. Answers `false`, and publishes nothing, once the CA has issued one.
    pub(super) async fn publish_mounted(&self, mounted: MountedCertificate) -> bool {
        let MountedCertificate { content, not_after, trust_domain } = mounted;
        {
            let mut state = self.lock();
            if state.by_ca {
                return false;
            }
            if let Some(domain) = trust_domain
                && state.held.insert(domain, not_after) != Some(not_after)
            {
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
        if let Some(roots) = state.change(now) {
            self.store.publish([(ROOTS, roots, i64::MAX)]);
        }
    }

    /// Waits until every Envoy has answered to the anchors that are held.
    async fn acknowledged(&self) {
        if tokio::time::timeout(ACKNOWLEDGED_WITHIN, self.store.roots_taken()).await.is_err() {
            warn!("new trust anchors were not acknowledged within 5 s; the certificate that may need them follows");
        }
    }

    /// Follows the files, and drops anchors whose grace is over, for as long as it is polled.
    pub(super) async fn follow(&self, mut files: watch::Receiver<PeerTrust>) -> Infallible {
        // By the wall clock, over suspends: anchors end by it.
        let timer =
            WallTimer::new().inspect_err(|error| warn!("anchors may be served for longer than they last: {error}"));
        loop {
            let now = clock::now();
            let in_files = files.borrow_and_update().clone();
            let next = {
                let mut state = self.lock();
                state.roots.in_files(in_files.roots, now);
                (state.crls, state.domains, state.own) = (in_files.crls, in_files.domains, in_files.own);
                state.look_for_gaps(self.own_issuer());
                state.held.retain(|_, end| *end > now);
                let left = state.held.iter().filter(|(domain, _)| **domain != state.own).map(|(_, end)| *end);
                let anchors = state.domains.iter().flat_map(|(_, bundle)| bundle.anchors());
                let anchors = anchors.map(|anchor| anchor.not_after()).filter(|end| *end > now);
                let ends = left.chain(state.next_crl_end(now)).chain(anchors).min();
                let next = state.roots.expire(now).into_iter().chain(ends).min();
                if state.published.is_some() || state.mounted {
                    self.push(&mut state, now);
                }
                next
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

    /// Who issued the certificate that is served.
    fn own_issuer(&self) -> Option<String> {
        match self.store.look() {
            View::Open(secrets) => Some(secrets.get(CERTIFICATE)?.facts().first()?.issuer.clone()),
            View::Ended(_) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(timer: Option<&WallTimer>, moment: Option<i64>, now: i64) {
    match (moment, timer) {
        (None, _) => future::pending().await,
        (Some(moment), Some(timer)) => {
            let moment = UNIX_EPOCH + Duration::from_secs(moment.max(0).cast_unsigned());
            timer.until(moment, || ()).await;
        }
        (Some(moment), None) => tokio::time::sleep(Duration::from_secs((moment - now).max(1).cast_unsigned())).await,
    }
}

impl State {
    /// What is to be published, if it differs from what is.
    fn change(&mut self, now: i64) -> Option<Content> {
        for anchor in self.roots.take_ended() {
            let end = clock::rfc3339(anchor.not_after());
            self.tell(format!("the trust anchor {} ended at {end} and is no longer served", anchor.subject()));
        }
        let (bundle, crl) = (self.roots.bundle(), self.crl(now));
        let domains = self.told_apart(&bundle, now);
        let unchanged = match &self.published {
            // Nothing that Envoy could use: it refuses an empty list, and goes on with the one that has ended.
            Some(_) if bundle.anchors().is_empty() => true,
            Some(held) => held.roots.is_same_set(&bundle) && same_domains(&held.domains, &domains) && held.crl == crl,
            None => bundle.anchors().is_empty(),
        };
        if unchanged {
            return None;
        }
        match self.roots.left_out(now) {
            0 => {}
            count => self.tell(format!("{count} trust anchors find no room and are left out")),
        }
        let anchors = bundle.certificates();
        let told_apart = domains.iter().map(|(domain, bundle)| (domain.to_string(), bundle.certificates())).collect();
        self.waited_for = false;
        self.published = Some(Published { roots: bundle, domains, crl: crl.clone() });
        Some(Content::ValidationContext(Validation { anchors, crl, domains: told_apart }))
    }

    /// Trust domains with the anchors that vouch for them, those of our own certificates first; none where they are not
    /// told apart. Where we moved from another one, our anchors vouch for that as well until our last certificate of it
    /// has ended: peers may not have moved yet.
    fn told_apart(&self, ours: &TrustBundle, now: i64) -> Vec<(TrustDomain, TrustBundle)> {
        if self.domains.is_empty() {
            return Vec::new();
        }
        let own: BTreeSet<_> = self.held.keys().chain([&self.own]).collect();
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
        // A domain without anchors would make Envoy refuse all of it.
        with_ours.chain(others).map(lasting).filter(|(_, bundle)| !bundle.anchors().is_empty()).collect()
    }

    /// The lists of revoked certificates as they are served.
    fn crl(&mut self, now: i64) -> Vec<u8> {
        let old: Vec<_> = self.crls.iter().filter(|list| list.next_update() <= now).cloned().collect();
        for list in &old {
            let then = match self.crl_fail_open {
                true => "no CRL is served until it is renewed (SDS_SHIM_CRL_FAIL_OPEN)",
                false => "Envoy refuses certificates of this issuer until it is renewed",
            };
            self.tell(format!(
                "the CRL of {} has expired at {}: {then}",
                list.issuer(),
                clock::rfc3339(list.next_update())
            ));
        }
        let served = self.crls.iter().filter(|_| old.is_empty() || !self.crl_fail_open);
        served.flat_map(|list| list.pem()).copied().collect()
    }

    /// Where there are lists, Envoy refuses certificates of an issuer without one: our peers may have the same as we.
    fn look_for_gaps(&mut self, own_issuer: Option<String>) {
        let covered = |issuer: &String| self.crls.iter().any(|list| list.issuer() == issuer);
        if let Some(issuer) = own_issuer.filter(|issuer| !self.crls.is_empty() && !covered(issuer)) {
            self.tell(format!(
                "no CRL is one of {issuer}, which issued our own certificate: Envoy refuses peers with certificates of it"
            ));
        }
    }

    /// When the next of the lists gets too old.
    fn next_crl_end(&self, now: i64) -> Option<i64> {
        self.crls.iter().map(|list| list.next_update()).filter(|end| *end > now).min()
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
