use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    task::yield_now,
};

use super::{
    View,
    demand::{Demand, Wanted},
};

/// What consumers have said of the trust anchors that they were given.
#[derive(Default)]
pub(super) struct Receipts {
    /// Those who want the anchors, each with the version that it answered to last.
    answered: Mutex<BTreeMap<u64, Option<String>>>,
    changed: Notify,
    next: AtomicU64,
}

impl Receipts {
    /// Waits until everybody who wants the anchors has answered to the version that is held then, be it with a
    /// refusal. `held` is asked again each time: the anchors may change once more meanwhile.
    pub(super) async fn all(&self, held: impl Fn() -> Option<String>) {
        loop {
            let changed = self.changed.notified();
            let version = held();
            let all = |answered: &BTreeMap<_, Option<String>>| answered.values().all(|v| *v == version);
            if version.is_none() || all(&self.answered.lock().unwrap_or_else(PoisonError::into_inner)) {
                return;
            }
            changed.await;
        }
    }
}

/// Gives a turn to the consumers that what was published has woken, and one to the connections that they are on.
pub async fn consumers_first() {
    yield_now().await;
    yield_now().await;
}

/// One consumer's side of a store.
pub struct Consumer {
    /// What it sees, with the present view counted as seen.
    pub views: watch::Receiver<View>,
    receipts: Arc<Receipts>,
    id: u64,
    wanted: Wanted,
}

impl Consumer {
    pub(super) fn new(views: watch::Receiver<View>, receipts: &Arc<Receipts>, demand: &Demand) -> Self {
        let id = receipts.next.fetch_add(1, Ordering::Relaxed);
        Self { views, receipts: Arc::clone(receipts), id, wanted: Wanted::new(demand) }
    }

    /// Says which names it wants that stand for files, so that those are read. Returns those that are new and have to
    /// wait, because as many others are held as can be.
    pub fn wants<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        self.wanted.set(names)
    }

    /// Says which version of the trust anchors it has answered to: `None` when it does not want them, `Some(None)`
    /// when it has yet to answer.
    pub fn took_roots(&self, version: Option<Option<&str>>) {
        let mut answered = self.receipts.answered.lock().unwrap_or_else(PoisonError::into_inner);
        match version {
            None if answered.remove(&self.id).is_none() => return,
            None => {}
            Some(version) if answered.get(&self.id).is_some_and(|known| known.as_deref() == version) => return,
            Some(version) => drop(answered.insert(self.id, version.map(str::to_owned))),
        }
        drop(answered);
        self.receipts.changed.notify_waiters();
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.took_roots(None);
    }
}
