use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use openssl::sha::sha256;
use tracing::{Level, debug, event_enabled, info, warn};

use super::{
    account::Account,
    blame::about,
    crowd::{Cause, Group},
    rights::Rights,
    subscription::{Outcome, Subscription, Verdict},
};
use crate::{
    clock,
    status::{Refusal, StreamHandle},
    store::{MAX_NAMES, Snapshot},
};

fn unknown(name: &str) -> &'static str {
    match name.starts_with("file-") {
        true => {
            "unknown resource requested: expected file-cert:CHAIN~KEY, file-root:FILE, or file-token:FILE below \
             SDS_SHIM_TOKEN_DIRECTORIES"
        }
        false => "unknown resource requested",
    }
}

/// Names that are remembered, so that each is warned about once for one reason.
const REMEMBERED: usize = 64;
/// Characters of such a name that are told.
const SHOWN: usize = 128;

/// What is remembered over all streams.
pub(super) struct Told {
    /// Names that were warned about, each with what was told: SHA-256 of both, because names may be long.
    warned: Mutex<BTreeSet<[u8; 32]>>,
    /// The mark of secrets that are sent. It is another one after each refusal, and in each process: an Envoy that gets
    /// bytes again that it has refused would take them unread.
    mark: AtomicU64,
}

impl Told {
    /// `mark` is the first one.
    pub(super) fn new(mark: u64) -> Self {
        Self { warned: Mutex::default(), mark: AtomicU64::new(mark) }
    }
}

/// Tells what happens on one stream, in the log and in public.
pub(super) struct StreamReport {
    shown: StreamHandle,
    rights: Rights,
    told: Arc<Told>,
    group: Arc<Group>,
    /// Whether it is no stream but a single answer, as our own `get` and tools ask for, and no Envoy.
    fetched: bool,
}

impl StreamReport {
    pub(super) fn new(shown: StreamHandle, rights: Rights, told: Arc<Told>, account: &Account, fetched: bool) -> Self {
        Self { shown, rights, told, group: Arc::clone(&account.group), fetched }
    }

    pub(super) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The mark of what is sent now.
    pub(super) fn mark(&self) -> u64 {
        self.told.mark.load(Ordering::Relaxed)
    }

    pub(super) fn request(&self, outcome: &Outcome, subscription: &Subscription, snapshot: &Snapshot) {
        let now = clock::now();
        self.shown.wants(subscription.names(), now);
        match &outcome.verdict {
            Some((Verdict::Nack(reason), names)) => {
                self.told.mark.fetch_add(1, Ordering::Relaxed);
                let about = about(reason, names, || self.shown.all_names(), snapshot);
                let holds = names.iter().all(|name| subscription.holds(name));
                self.shown.refused(Refusal { sent: names, about: &about, reason, holds }, now);
                if self.group.may_log(Cause::Refused) {
                    // It tells what is wrong with one secret when it gets the last of those that it needs.
                    let told_with = (about != *names).then(|| names.join(","));
                    let has = if holds { "keeps the one it had" } else { "has no other" };
                    warn!(
                        resources = about.join(","),
                        told_with,
                        reason,
                        "Envoy rejected the secret and {has}; nothing is sent until the secret changes"
                    );
                }
            }
            Some((Verdict::Ack, names)) => {
                self.shown.accepted(names, now);
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
        if let Some((name, why)) = outcome.left_out.as_ref().filter(|_| !self.fetched) {
            self.warn_once(name, &format!("unknown resource requested: {why}; its stream stays open"));
        }
        for name in subscription.pending(snapshot).filter(|name| !self.fetched && !self.rights.is_known(name)) {
            self.warn_once(name, &format!("{}; its stream stays open without a response", unknown(name)));
        }
        for name in outcome.removed.iter().filter(|name| !self.rights.is_known(name)) {
            self.warn_once(name, &format!("{}; answered as removed", unknown(name)));
        }
        self.refuse(subscription.names().chain(outcome.removed.iter().map(String::as_str)));
    }

    pub(super) fn response(&self, outcome: &Outcome) {
        if self.fetched {
            for (name, secret) in &outcome.send {
                if event_enabled!(Level::INFO) && self.group.may_log(Cause::Sent) {
                    info!(resource = name, version = secret.version(), "sent in answer to FetchSecrets");
                }
            }
            return;
        }
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
                "the limit of {MAX_NAMES} file names is reached, or that of their total length; waiting until one is \
                 released"
            );
            self.warn_once(name, &trouble);
        }
    }

    /// Files that are not open to the client's user. Its stream stays open: there may be more on it.
    fn refuse<'a>(&self, names: impl Iterator<Item = &'a str>) {
        // Whoever fetches is answered so.
        if self.fetched {
            return;
        }
        let Some((uid, names)) = self.rights.refused(names) else { return };
        for name in names {
            let trouble = format!(
                "requested by uid {uid}, which may name only files below SDS_SHIM_FILE_DIRECTORIES; not served"
            );
            self.warn_once(name, &trouble);
        }
    }

    fn warn_once(&self, name: &str, trouble: &str) {
        let mut told = self.told.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < REMEMBERED && told.insert(sha256(&[name.as_bytes(), trouble.as_bytes()].concat())) {
            let shown: String = name.escape_default().take(SHOWN).collect();
            warn!(resource = shown, "{trouble}");
        }
    }
}
