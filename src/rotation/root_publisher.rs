use std::{
    collections::BTreeSet,
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openssl::error::ErrorStack;
use tokio::sync::{Notify, watch};
use tracing::warn;

use super::roots::Roots;
use crate::{
    clock,
    identity::{Issued, TrustBundle},
    store::{CERTIFICATE, Content, ROOTS, SecretStore},
};

/// How long a certificate waits for the roots that it needs to be acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// Serves the union of all trust anchors: it is pushed when a source changes, without a call to the CA.
pub(super) struct RootPublisher {
    store: Arc<SecretStore>,
    state: Mutex<State>,
    deadlines: Notify,
}

struct State {
    roots: Roots,
    /// What is published; nothing before the first answer of the CA.
    published: Option<TrustBundle>,
    /// Whether a certificate has waited for it: whoever never answers delays one certificate and no more.
    waited_for: bool,
    told: BTreeSet<String>,
}

impl RootPublisher {
    pub(super) fn new(store: Arc<SecretStore>, grace: Option<Duration>) -> Self {
        let state = State { roots: Roots::new(grace), published: None, waited_for: true, told: BTreeSet::new() };
        Self { store, state: Mutex::new(state), deadlines: Notify::new() }
    }

    /// Publishes what the CA issued. Peers may already present certificates of a new root, and they must be able to
    /// verify ours: so where the roots change, they are pushed first, and the certificate follows once every Envoy
    /// has taken them.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub(super) async fn publish(&self, issued: &Issued, certificate: Content) -> Result<(), ErrorStack> {
        let (_, not_after) = issued.svid.validity();
        let (changed, waited_for) = {
            let mut state = self.lock();
            issued.bad_anchors.iter().for_each(|bad| state.tell(format!("of the roots that the CA answers, {bad}")));
            state.roots.answered(issued.roots.clone(), issued.anchor, not_after, clock::now());
            let changed = state.change()?;
            // Also when nothing is new in this answer: a file may have brought the root a moment ago.
            (changed, std::mem::replace(&mut state.waited_for, true))
        };
        self.deadlines.notify_one();
        let certificate = (CERTIFICATE, certificate, not_after);
        let roots = changed.map(|roots| (ROOTS, roots, i64::MAX));
        if waited_for || !self.store.holds(CERTIFICATE) {
            self.store.publish(roots.into_iter().chain([certificate]));
            return Ok(());
        }
        self.store.publish(roots);
        if tokio::time::timeout(ACKNOWLEDGED_WITHIN, self.store.roots_taken()).await.is_err() {
            warn!("new trust anchors were not acknowledged within 5 s; the certificate that may need them follows");
        }
        self.store.publish([certificate]);
        Ok(())
    }

    /// Follows the files, and drops anchors whose grace is over, for as long as it is polled.
    pub(super) async fn follow(&self, mut files: watch::Receiver<TrustBundle>) -> Infallible {
        loop {
            let now = clock::now();
            let in_files = files.borrow_and_update().clone();
            let next = {
                let mut state = self.lock();
                state.roots.in_files(in_files, now);
                let next = state.roots.expire(now);
                if state.published.is_some() {
                    match state.change() {
                        Ok(Some(roots)) => self.store.publish([(ROOTS, roots, i64::MAX)]),
                        Ok(None) => {}
                        Err(error) => warn!("the trust anchors cannot be published: {error}"),
                    }
                }
                next
            };
            tokio::select! {
                changed = files.changed() => if changed.is_err() {
                    // Nobody watches files.
                    future::pending::<()>().await;
                },
                () = self.deadlines.notified() => {}
                () = until(next, now) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(moment: Option<i64>, now: i64) {
    match moment {
        Some(moment) => tokio::time::sleep(Duration::from_secs((moment - now).max(1) as u64)).await,
        None => future::pending().await,
    }
}

impl State {
    /// What is to be published, if it differs from what is.
    fn change(&mut self) -> Result<Option<Content>, ErrorStack> {
        let bundle = self.roots.bundle();
        if self.published.as_ref().is_some_and(|held| held.is_same_set(&bundle)) {
            return Ok(None);
        }
        match self.roots.left_out() {
            0 => {}
            count => self.tell(format!("{count} trust anchors find no room and are left out")),
        }
        let anchors = bundle.to_pem()?;
        self.published = Some(bundle);
        self.waited_for = false;
        Ok(Some(Content::ValidationContext { anchors }))
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
