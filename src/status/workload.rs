use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering};

use super::{Reason, Status};
use crate::{
    clock,
    store::{CERTIFICATE, ROOTS, SecretStore, Snapshot, View},
};

/// One workload: what it is served, and how its renewal goes.
pub struct Workload {
    store: Weak<SecretStore>,
    status: Arc<Status>,
    facts: Mutex<RenewalFacts>,
}

/// How the renewal of one workload goes. Times are Unix seconds.
#[derive(Clone, Debug, Default)]
pub struct RenewalFacts {
    /// The SPIFFE ID of what it is served, or of what is asked for as long as it is served nothing.
    pub identity: String,
    /// The SPIFFE ID that it is to have, where that is another one.
    pub wanted: Option<String>,
    /// Whether an attempt is under way.
    pub asking: bool,
    /// When it is renewed next, or tried again.
    pub next_attempt: Option<i64>,
    /// When it was tried last.
    pub last_attempt: Option<i64>,
    /// When it succeeded last.
    pub last_success: Option<i64>,
    /// The end of the token that was used last, where it has one.
    pub token_not_after: Option<i64>,
    /// How often the mounted files were read because somebody asked for it.
    pub looks: u64,
    /// How often a Workload API has told the certificate that was held already.
    pub confirmed: u64,
    /// What is wrong now.
    pub trouble: Option<Trouble>,
    /// How it goes with the lists of revoked certificates.
    pub revocation: RevocationFacts,
    /// What peers will not like about the mounted certificate, while that is served: its class, and in words.
    pub flaws: Vec<(&'static str, String)>,
}

/// How it goes with the lists of revoked certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationFacts {
    /// How many lists are served.
    pub served: usize,
    /// Whether Envoy looks for CA certificates in them as well.
    pub whole_chain: bool,
    /// Why what should be served is not, with the class of the reason.
    pub trouble: Option<(&'static str, String)>,
    /// Whether that leaves peers without the lists that they are to be verified with.
    pub is_missed: bool,
}

/// What keeps a workload from its next certificate.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Since when, Unix seconds.
    pub since: i64,
    /// Its class.
    pub reason: Reason,
    /// In words.
    pub text: String,
    /// Whether the last attempt reached the CA, or what takes its place, and cost it work.
    pub reached: bool,
}

/// Why the process is not ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No request has brought a token, so there is nobody to get a certificate for.
    #[error("no SDS request has carried a service-account token yet")]
    Nobody,
    /// A secret was never held.
    #[error("{resource} is not available yet{because}")]
    Missing {
        /// Which one.
        resource: &'static str,
        /// What is known of the reason.
        because: String,
    },
    /// A secret cannot be used any more.
    #[error("{resource} expired at {at}{because}")]
    Expired {
        /// Which one.
        resource: &'static str,
        /// When, as RFC 3339.
        at: String,
        /// What is known of the reason.
        because: String,
    },
    /// Peers would be accepted although they may be revoked.
    #[error("revocation lists are missing: {0}")]
    Revocation(String),
    /// It can be used, but not for long enough.
    #[error("{resource} expires at {at}, which is less than SDS_SHIM_READY_MIN_LIFE away{because}")]
    Short {
        /// Which one.
        resource: &'static str,
        /// When, as RFC 3339.
        at: String,
        /// What is known of the reason.
        because: String,
    },
    /// It can be used, but not by the Envoy that was sent it.
    #[error("Envoy refused {resource} at {at} and has no other: {reason}")]
    Refused {
        /// Which one.
        resource: &'static str,
        /// When, as RFC 3339.
        at: String,
        /// What Envoy said.
        reason: String,
    },
}

impl Workload {
    pub(super) fn new(identity: String, store: Weak<SecretStore>, status: Arc<Status>) -> Self {
        Self { store, status, facts: Mutex::new(RenewalFacts { identity, ..RenewalFacts::default() }) }
    }

    /// It is served as the SPIFFE ID `held`, and is to have `wanted`.
    pub fn identify(&self, held: &str, wanted: &str) {
        let mut facts = self.lock();
        facts.identity = held.to_string();
        facts.wanted = (held != wanted).then(|| wanted.to_string());
    }

    /// An attempt begins at `now` (Unix seconds) with a token that ends at `token_not_after`, if it does.
    pub fn attempts(&self, now: i64, token_not_after: Option<i64>) {
        let mut facts = self.lock();
        facts.asking = true;
        facts.last_attempt = Some(now);
        facts.token_not_after = token_not_after.or(facts.token_not_after);
    }

    /// An attempt has failed; the next one is made at `next` (Unix seconds).
    pub fn failed(&self, next: i64, trouble: Trouble) {
        let mut facts = self.lock();
        let since = facts.trouble.as_ref().map_or(trouble.since, |trouble| trouble.since);
        let reason = trouble.reason;
        facts.asking = false;
        facts.trouble = Some(Trouble { since, ..trouble });
        facts.next_attempt = Some(next);
        drop(facts);
        self.status.changed(|renewals| renewals.failed[reason as usize] += 1);
    }

    /// A certificate was published at `now`, and is renewed at `next`.
    pub fn renewed(&self, now: i64, next: i64) {
        let mut facts = self.lock();
        facts.asking = false;
        // Of another identity than the wanted one: what keeps it from that has not changed.
        facts.trouble = facts.trouble.take().filter(|_| facts.wanted.is_some());
        facts.last_success = Some(now);
        facts.next_attempt = Some(next);
        facts.flaws = Vec::new();
        drop(facts);
        self.status.by_ca.store(true, Ordering::Relaxed);
        self.status.changed(|renewals| renewals.issued += 1);
    }

    /// What a Workload API has told at `now` (Unix seconds) is served: another certificate, or still the same one. It is
    /// that API that decides when there is another.
    pub fn told(&self, now: i64, is_new: bool) {
        let mut facts = self.lock();
        facts.asking = false;
        facts.trouble = None;
        facts.last_success = Some(now);
        facts.next_attempt = None;
        facts.confirmed += u64::from(!is_new);
        drop(facts);
        self.status.by_ca.store(true, Ordering::Relaxed);
        self.status.changed(|renewals| renewals.issued += u64::from(is_new));
    }

    /// What was issued at `received`, before a crash, is served and is renewed at `next`.
    pub fn resumed(&self, received: i64, next: i64) {
        let mut facts = self.lock();
        facts.last_success = Some(received);
        facts.next_attempt = Some(next);
        drop(facts);
        self.status.by_ca.store(true, Ordering::Relaxed);
        self.status.changed(|_| {});
    }

    /// What is held is renewed at `next`, which is another time than before.
    pub fn renews(&self, next: i64) {
        self.lock().next_attempt = Some(next);
        self.status.changed(|_| {});
    }

    /// The mounted files can be used at `now`, and have these flaws.
    pub fn mounted(&self, now: i64, flaws: Vec<(&'static str, String)>) {
        let mut facts = self.lock();
        facts.flaws = flaws;
        facts.trouble = facts.trouble.take().filter(|trouble| trouble.reason != Reason::Files);
        facts.last_success = Some(now);
        drop(facts);
        self.status.changed(|_| {});
    }

    /// How it goes with the lists of revoked certificates from now on.
    pub fn revocation(&self, now: RevocationFacts) {
        let before = std::mem::replace(&mut self.lock().revocation, now.clone());
        if before != now {
            self.status.changed(|_| {});
        }
    }

    /// The mounted files were read as was asked for, whatever came of it.
    pub fn looked(&self) {
        self.lock().looks += 1;
    }

    /// How its renewal goes.
    pub fn renewal(&self) -> RenewalFacts {
        self.lock().clone()
    }

    /// What it is served.
    pub fn secrets(&self) -> Snapshot {
        match self.store.upgrade().map(|store| store.look()) {
            Some(View::Open(snapshot)) => snapshot,
            Some(View::Ended(_)) | None => Snapshot::default(),
        }
    }

    /// The version of the certificate that it is served.
    pub fn version(&self) -> Option<String> {
        self.secrets().get(CERTIFICATE).map(|held| held.version().to_owned())
    }

    /// Until when (Unix seconds) all that it needs can be used.
    pub(super) fn usable_until(&self) -> i64 {
        let secrets = self.secrets();
        [CERTIFICATE, ROOTS].into_iter().map(|name| not_after(&secrets, name).unwrap_or(i64::MIN)).min().unwrap_or(0)
    }

    pub(super) fn readiness(&self, now: i64, min_life: i64) -> Result<(), NotReady> {
        let secrets = self.secrets();
        let missed = Some(self.lock().revocation.clone()).filter(|revocation| revocation.is_missed);
        if let Some((_, trouble)) = missed.and_then(|revocation| revocation.trouble) {
            return Err(NotReady::Revocation(trouble));
        }
        let because = || self.lock().trouble.as_ref().map_or(String::new(), |trouble| format!(": {}", trouble.text));
        for resource in [CERTIFICATE, ROOTS] {
            let end = not_after(&secrets, resource);
            let end = end.ok_or_else(|| NotReady::Missing { resource, because: because() })?;
            let at = || clock::rfc3339(end);
            if end <= now {
                return Err(NotReady::Expired { resource, at: at(), because: because() });
            }
            if end.saturating_sub(now) < min_life {
                return Err(NotReady::Short { resource, at: at(), because: because() });
            }
        }
        for resource in [CERTIFICATE, ROOTS] {
            if let Some((at, reason)) = self.status.peers.refusal(resource) {
                return Err(NotReady::Refused { resource, at: clock::rfc3339(at), reason });
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, RenewalFacts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a secret cannot be used any more: for anchors, that is when the last of them ends.
fn not_after(secrets: &Snapshot, name: &str) -> Option<i64> {
    let secret = secrets.get(name)?;
    match secret.is_anchors() {
        true => secret.facts().iter().filter(|fact| !fact.is_crl).map(|anchor| anchor.not_after).max(),
        false => Some(secret.not_after()),
    }
}
