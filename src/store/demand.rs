use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// How names begin that stand for files (contract with Istio: `file-cert:`, `file-root:`).
const ON_DEMAND: &str = "file-";
/// Different names at a time, over all consumers: each may stand for a few tens of KiB.
pub const MAX_NAMES: usize = 16;
/// Bytes of all of them together. They are paths, and whoever follows the files holds each of them many times.
const MAX_BYTES: usize = 16 * 1024;

/// Whether a name stands for files, so that it is held once somebody asks for it.
pub fn is_on_demand(name: &str) -> bool {
    name.starts_with(ON_DEMAND)
}

/// Names that are held only because a consumer asked for them.
#[derive(Clone, Default)]
pub struct Demand(Arc<NamedFiles>);

#[derive(Default)]
struct NamedFiles {
    names: Mutex<Names>,
    changed: Notify,
}

/// Who comes first is held first: nobody whose name is held loses it to somebody who comes later.
#[derive(Default)]
struct Names {
    /// What is wanted: by how many consumers, and as which since the start.
    wanted: BTreeMap<String, (usize, u64)>,
    /// Which of it is held.
    held: BTreeSet<String>,
    next: u64,
}

impl Names {
    fn has_room_for(&self, name: &str) -> bool {
        let bytes: usize = self.held.iter().map(String::len).sum();
        self.held.len() < MAX_NAMES && bytes + name.len() <= MAX_BYTES
    }

    fn first_that_waits(&self) -> Option<&String> {
        let waiting = self.wanted.iter().filter(|(name, _)| !self.held.contains(*name));
        waiting.min_by_key(|(_, (_, arrival))| *arrival).map(|(name, _)| name)
    }
}

impl Demand {
    /// What is to be held now.
    pub fn names(&self) -> BTreeSet<String> {
        self.lock(|names| names.held.clone())
    }

    /// Waits until that is something else than `seen`.
    pub async fn changed(&self, seen: &BTreeSet<String>) {
        loop {
            let changed = self.0.changed.notified();
            if self.lock(|names| names.held != *seen) {
                return;
            }
            changed.await;
        }
    }

    /// One more consumer wants it. Returns whether it is held: else it waits until somebody wants another no more.
    fn add(&self, name: &str) -> bool {
        let is_held = self.lock(|names| {
            let arrival = names.next;
            names.next += 1;
            names.wanted.entry(name.to_owned()).or_insert((0, arrival)).0 += 1;
            if names.has_room_for(name) {
                names.held.insert(name.to_owned());
            }
            names.held.contains(name)
        });
        self.0.changed.notify_waiters();
        is_held
    }

    fn remove(&self, name: &str) {
        self.lock(|names| {
            let Some((count, _)) = names.wanted.get_mut(name) else { return };
            *count -= 1;
            if *count > 0 {
                return;
            }
            names.wanted.remove(name);
            if names.held.remove(name) {
                while let Some(first) = names.first_that_waits().filter(|first| names.has_room_for(first)).cloned() {
                    names.held.insert(first);
                }
            }
        });
        self.0.changed.notify_waiters();
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Names) -> T) -> T {
        look(&mut self.0.names.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// From now on it wants these. Returns those that are new and have to wait.
    pub(super) fn set<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let (asked, mut names) = (names, BTreeSet::<&'a str>::new());
        names.extend(asked);
        self.names.retain(|name| {
            let kept = names.contains(name.as_str());
            if !kept {
                self.demand.remove(name);
            }
            kept
        });
        names.into_iter().filter(|name| self.names.insert((*name).to_owned()) && !self.demand.add(name)).collect()
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.set(std::iter::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_held_as_far_as_there_is_room_and_the_others_follow() {
        let demand = Demand::default();
        let name = |number: usize| format!("file-root:/{number}/{}", "x".repeat(6000));
        let (mut first, mut second) = (Wanted::new(&demand), Wanted::new(&demand));
        let names: Vec<_> = (0..4).map(name).collect();
        assert!(first.set(names[..2].iter().map(String::as_str)).is_empty());
        assert_eq!(second.set(names[2..].iter().map(String::as_str)), names[2..]);
        assert_eq!(demand.names(), names[..2].iter().cloned().collect());
        drop(first);
        assert_eq!(demand.names(), names[2..].iter().cloned().collect());
    }
}
