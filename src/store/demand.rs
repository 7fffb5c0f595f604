use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// How names begin that stand for files (contract with Istio: `file-cert:`, `file-root:`).
const ON_DEMAND: &str = "file-";
/// Different names at a time, over all consumers: each may stand for a few tens of KiB.
const MAX_NAMES: usize = 16;

/// Whether a name stands for files, so that it is held once somebody asks for it.
pub fn is_on_demand(name: &str) -> bool {
    name.starts_with(ON_DEMAND)
}

/// Names that are held only because a consumer asked for them.
#[derive(Clone, Default)]
pub struct Demand(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// How many consumers want each.
    wanted: Mutex<BTreeMap<String, usize>>,
    changed: Notify,
}

impl Demand {
    /// What is wanted now.
    pub fn names(&self) -> BTreeSet<String> {
        self.lock(|wanted| wanted.keys().take(MAX_NAMES).cloned().collect())
    }

    /// Waits until that is something else than `seen`.
    pub async fn changed(&self, seen: &BTreeSet<String>) {
        loop {
            let changed = self.0.changed.notified();
            if self.names() != *seen {
                return;
            }
            changed.await;
        }
    }

    fn add(&self, name: &str) {
        self.lock(|wanted| *wanted.entry(name.to_owned()).or_default() += 1);
        self.0.changed.notify_waiters();
    }

    fn remove(&self, name: &str) {
        self.lock(|wanted| {
            if let Some(count) = wanted.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(name);
                }
            }
        });
        self.0.changed.notify_waiters();
    }

    fn lock<T>(&self, look: impl FnOnce(&mut BTreeMap<String, usize>) -> T) -> T {
        look(&mut self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one consumer wants of it; taken back when it is dropped.
pub(super) struct Wanted {
    demand: Demand,
    names: BTreeSet<String>,
}

impl Wanted {
    pub(super) fn new(demand: &Demand) -> Self {
        Self { demand: demand.clone(), names: BTreeSet::new() }
    }

    /// From now on it wants these, of which only names of files count.
    pub(super) fn set<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let names: BTreeSet<&str> = names.filter(|name| is_on_demand(name)).collect();
        self.names.retain(|name| {
            let kept = names.contains(name.as_str());
            if !kept {
                self.demand.remove(name);
            }
            kept
        });
        for name in names {
            if self.names.insert(name.to_owned()) {
                self.demand.add(name);
            }
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.set(std::iter::empty());
    }
}
