use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use openssl::sha::sha256;
use tracing::{Level, debug, event_enabled, info, warn};

use super::{
    account::Account,
    crowd::{Cause, Group},
    rights::Rights,
    subscription::{Outcome, Subscription, Verdict},
};
use crate::{
    clock,
    status::StreamHandle,
    store::{CERTIFICATE, MAX_NAMES, ROOTS, Snapshot, is_on_demand},
};

/// Whether somebody may ask for a name before it is held.
pub(super) fn is_expected(name: &str) -> bool {
    name == CERTIFICATE || name == ROOTS || is_on_demand(name)
}

/// Names that are remembered, so that each is warned about once for one reason.
const REMEMBERED: usize = 64;
/// Characters of such a name that are told.
const SHOWN: usize = 128;

/// Names that were told, each with what was: SHA-256 of both, because names may be long.
pub(super) type Told = Arc<Mutex<BTreeSet<[u8; 32]>>>;

/// Tells what happens on one stream, in the log and in public.
pub(super) struct Report {
    shown: StreamHandle,
    rights: Rights,
    told: Told,
    group: Arc<Group>,
}

impl Report {
    pub(super) fn new(shown: StreamHandle, rights: Rights, told: Told, account: &Account) -> Self {
        Self { shown, rights, told, group: Arc::clone(&account.group) }
    }

    pub(super) fn rights(&self) -> &Rights {
        &self.rights
    }

    pub(super) fn request(&self, outcome: &Outcome, subscription: &Subscription, snapshot: &Snapshot) {
        let now = clock::now();
        self.shown.wants(subscription.names(), now);
        match &outcome.verdict {
            Some((Verdict::Nack(reason), names)) => {
                self.shown.answered(names, Some(reason), now);
                if self.group.may_log(Cause::Refused) {
                    warn!(
                        resources = names.join(","),
                        reason,
                        "Envoy refused a secret and keeps the one it had; nothing is sent until the secret changes"
                    );
                }
            }
            Some((Verdict::Ack, names)) => {
                self.shown.answered(names, None, now);
                if event_enabled!(Level::DEBUG) && self.group.may_log(Cause::Accepted) {
                    debug!(resources = names.join(","), "Envoy accepted");
                }
            }
            None => {}
        }
        for (name, secret) in snapshot.iter() {
            if subscription.answered(name) == Some(Some(secret.version())) {
                self.shown.holds(name, now);
            }
        }
        for name in subscription.pending(snapshot).filter(|name| !is_expected(name)) {
            let trouble = "asked for a resource that is unknown here; its stream stays open and gets nothing";
            self.warn_once(name, trouble);
        }
        self.refuse(subscription);
    }

    pub(super) fn response(&self, outcome: &Outcome) {
        self.shown.sent(outcome.send.iter().map(|(name, _)| name.as_str()), clock::now());
        for (name, secret) in &outcome.send {
            if event_enabled!(Level::INFO) && self.group.may_log(Cause::Sent) {
                info!(resource = name, version = secret.version(), "sent to Envoy");
            }
        }
    }

    /// These stand for files, and as many others are held as can be.
    pub(super) fn put_off(&self, names: &[&str]) {
        for name in names {
            let trouble = format!(
                "files of {MAX_NAMES} names are held, which is the most, or they are too long together; it waits until one of them is asked for no \
                 more"
            );
            self.warn_once(name, &trouble);
        }
    }

    /// Files that are not open to the client's user. Its stream stays open: there may be more on it.
    fn refuse(&self, subscription: &Subscription) {
        let Some((uid, names)) = self.rights.refused(subscription.names()) else { return };
        for name in names {
            let trouble = format!(
                "asked for by uid {uid}, who gets files only below SDS_SHIM_FILE_DIRECTORIES; its stream stays open and \
                 gets nothing"
            );
            self.warn_once(name, &trouble);
        }
    }

    fn warn_once(&self, name: &str, trouble: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < REMEMBERED && told.insert(sha256(&[name.as_bytes(), trouble.as_bytes()].concat())) {
            let shown: String = name.escape_default().take(SHOWN).collect();
            warn!(resource = shown, "{trouble}");
        }
    }
}
