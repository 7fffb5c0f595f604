use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{
    config::RootsConfig,
    identity::{CrlTrouble, Revocation, RevocationList},
};

/// How long a file must have been empty before that is meant: who writes in place empties it first.
pub(super) const SETTLE: Duration = Duration::from_millis(300);

/// The file with revocation lists. Whatever it holds that cannot be used leaves the last good lists in place.
pub(super) struct CrlFile {
    pub(super) path: PathBuf,
    required: bool,
    fail_open: bool,
    several: bool,
    held: Revocation,
    /// Whether it could be used once.
    read: bool,
    empty_since: Option<Instant>,
}

impl CrlFile {
    pub(super) fn new(path: &Path, config: &RootsConfig) -> Self {
        Self {
            path: path.to_owned(),
            required: config.crl_required,
            fail_open: config.crl_fail_open,
            several: !config.domains.is_empty(),
            held: Revocation::default(),
            read: false,
            empty_since: None,
        }
    }

    /// What it holds.
    pub(super) fn revocation(&self) -> &Revocation {
        &self.held
    }

    /// Reads it. Answers whether that must be done again soon.
    pub(super) fn read(&mut self) -> bool {
        if RevocationList::is_withdrawn(&self.path) {
            let since = *self.empty_since.get_or_insert_with(Instant::now);
            let means_it = since.elapsed() >= SETTLE;
            if means_it {
                self.withdraw();
            } else if !self.read {
                let text = format!("{}: it is empty, and may be about to be written", self.path.display());
                self.held.trouble = Some(CrlTrouble { reason: "empty", text });
            }
            return !means_it;
        }
        self.empty_since = None;
        match RevocationList::read(&self.path, self.several) {
            Ok(lists) => {
                let lists: Vec<_> = lists.into_iter().map(Arc::new).collect();
                // What is the same stays the same memory.
                if lists != self.held.lists {
                    self.held.lists = lists;
                }
                self.read = true;
                self.tell(None);
            }
            // Few have one: that it is missing is told only of one that must be there, or was.
            Err(trouble)
                if trouble.reason == "missing" && self.held.lists.is_empty() && (self.read || !self.required) =>
            {
                self.held.trouble = None;
            }
            Err(trouble) => self.tell(Some(trouble)),
        }
        false
    }

    fn withdraw(&mut self) {
        if !self.read || !self.held.lists.is_empty() {
            info!(
                "revocation lists: {} is empty, so no lists are served: peers are accepted without revocation checks",
                self.path.display()
            );
        }
        (self.held, self.read) = (Revocation::default(), true);
    }

    fn tell(&mut self, trouble: Option<CrlTrouble>) {
        if trouble == self.held.trouble {
            return;
        }
        match (&trouble, self.held.lists.len()) {
            (None, count) => info!("revocation lists in {}: everything is usable again: {count}", self.path.display()),
            (Some(trouble), 0) if self.fail_open => {
                warn!("revocation lists: {trouble}; peers are accepted without them (SDS_SHIM_CRL_FAIL_OPEN)");
            }
            (Some(trouble), 0) => {
                warn!("revocation lists: {trouble}; ROOTCA is held back without them (SDS_SHIM_CRL_FAIL_OPEN=false)");
            }
            (Some(trouble), count) => warn!("revocation lists: {trouble}; {count} in use"),
        }
        self.held.trouble = trouble;
    }
}
