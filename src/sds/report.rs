use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use openssl::sha::sha256;
use tracing::{debug, info, warn};

use super::subscription::{Outcome, Subscription, Verdict};
use crate::store::Snapshot;

/// Names that somebody may ask for before they are held.
pub(super) const EXPECTED_NAMES: [&str; 2] = ["default", "ROOTCA"];
/// Unknown names that are remembered, so that each is warned about once.
const REMEMBERED: usize = 64;
/// Characters of an unknown name that are told.
const SHOWN: usize = 128;

/// Tells what happens on the streams, in the log.
#[derive(Clone, Default)]
pub(super) struct Report {
    /// SHA-256 of each, because names may be long.
    unknown: Arc<Mutex<BTreeSet<[u8; 32]>>>,
}

impl Report {
    pub(super) fn request(&self, outcome: &Outcome, subscription: &Subscription, snapshot: &Snapshot) {
        match &outcome.verdict {
            Some((Verdict::Nack(reason), names)) => warn!(
                resources = names.join(","),
                reason, "Envoy refused a secret and keeps the one it had; nothing is sent until the secret changes"
            ),
            Some((Verdict::Ack, names)) => debug!(resources = names.join(","), "Envoy accepted"),
            None => {}
        }
        for name in subscription.pending(snapshot).filter(|name| !EXPECTED_NAMES.contains(name)) {
            self.unknown_name(name);
        }
    }

    pub(super) fn response(&self, outcome: &Outcome) {
        for (name, secret) in &outcome.send {
            info!(resource = name, version = secret.version(), "sent to Envoy");
        }
    }

    fn unknown_name(&self, name: &str) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < REMEMBERED && unknown.insert(sha256(name.as_bytes())) {
            let shown: String = name.escape_default().take(SHOWN).collect();
            warn!(
                resource = shown,
                "asked for a resource that is unknown here; its stream stays open and gets nothing"
            );
        }
    }
}
