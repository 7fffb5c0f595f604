use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::budget;

/// Connections at a time; each is for one request.
const CONNECTIONS: usize = 64;

/// Who is connected, in the order in which they came.
#[derive(Default)]
pub(super) struct Places(VecDeque<Place>);

pub(super) struct Place {
    pub(super) task: AbortHandle,
    /// Whether a whole request was read.
    pub(super) asked: Arc<AtomicBool>,
    /// Where it comes from, if by the network.
    pub(super) peer: Option<IpAddr>,
}

impl Places {
    /// Takes one more. When there are too many, one gives way that has not asked yet, the oldest of whoever has most of
    /// these, else the oldest: who asks and reads at once, as kubelet does, is never among those.
    pub(super) fn take(&mut self, place: Place) {
        self.0.retain(|place| !place.task.is_finished());
        if self.0.len() >= CONNECTIONS {
            let slow = |place: &&Place| !place.asked.load(Ordering::Relaxed);
            let has = |peer| self.0.iter().filter(slow).filter(|place| place.peer == peer).count();
            let most = self.0.iter().filter(slow).map(|place| has(place.peer)).max();
            let gives_way = |place: &Place| slow(&place) && Some(has(place.peer)) == most;
            let at = self.0.iter().position(gives_way).unwrap_or(0);
            self.0.remove(at).inspect(|place| place.task.abort());
        }
        self.0.push_back(place);
    }
}

/// TLS clients at a time, and those of one address: nobody who stalls, or scans, keeps the others out.
const SLOTS: usize = 4;
const OF_ONE: usize = 2;
/// How long a slot rests after a handshake that failed: a signature has been made for nothing.
const REST: Duration = Duration::from_millis(100);

/// Who is in a handshake or has come through it: it takes memory that all together must not.
#[derive(Default)]
pub(super) struct Slots {
    taken: Mutex<Vec<Taken>>,
    freed: Notify,
}

struct Taken {
    peer: IpAddr,
    /// When it is free again, if nobody has it any more.
    rests_until: Option<Instant>,
}

/// A slot; free again when this is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
    /// Whether it need not rest.
    pub(super) is_known: bool,
}

impl Slots {
    /// Waits for a slot. `None` where there is no room for even one.
    pub(super) async fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        loop {
            let freed = self.freed.notified();
            match self.try_take(peer, Instant::now()) {
                Ok(slot) => return Some(slot),
                Err(is_anybody) if !is_anybody => return None,
                // Nobody tells when a rest is over.
                Err(_) => drop(timeout(REST, freed).await),
            }
        }
    }

    /// A slot, or whether anybody has one or will have had.
    fn try_take(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Result<Slot, bool> {
        let mut taken = self.taken();
        taken.retain(|one| one.rests_until.is_none_or(|until| until > now));
        let of_peer = taken.iter().filter(|one| one.peer == peer).count();
        if taken.len() < SLOTS && of_peer < OF_ONE && budget::has_room_for_handshakes(taken.len() + 1) {
            taken.push(Taken { peer, rests_until: None });
            return Ok(Slot { slots: Arc::clone(self), peer, is_known: false });
        }
        Err(!taken.is_empty())
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        if let Some(at) = taken.iter().position(|one| one.peer == self.peer && one.rests_until.is_none()) {
            if self.is_known {
                taken.swap_remove(at);
            } else {
                taken[at].rests_until = Some(Instant::now() + REST);
            }
        }
        drop(taken);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn one_address_leaves_slots_to_others_and_a_failure_rests() {
        let (slots, start) = (Arc::new(Slots::default()), Instant::now());
        let come = |number: u8, now| slots.try_take(peer(number), now).ok();
        let one = [come(1, start), come(1, start)];
        assert!(one.iter().all(Option::is_some) && come(1, start).is_none());
        let mut others = [come(2, start), come(3, start)];
        assert!(others.iter().all(Option::is_some) && come(4, start).is_none());
        drop(one);
        assert!(come(4, start).is_none(), "both failed");
        if let Some(slot) = &mut others[0] {
            slot.is_known = true;
        }
        drop(others);
        let known = come(4, start);
        assert!(known.is_some() && come(4, start).is_none(), "one of the others was known");
        assert!(come(4, Instant::now() + REST).is_some(), "all have rested");
    }

    #[tokio::test]
    async fn the_largest_holder_of_places_gives_one_up() {
        let mut places = Places::default();
        let mut tasks = Vec::new();
        let mut come = |number: u8, asked: bool| {
            let task = tokio::spawn(future::pending::<()>());
            let place =
                Place { task: task.abort_handle(), asked: Arc::new(AtomicBool::new(asked)), peer: Some(peer(number)) };
            places.take(place);
            tasks.push(task);
        };
        come(1, false);
        come(2, true);
        (2..CONNECTIONS).for_each(|_| come(3, false));
        come(4, false);
        tokio::task::yield_now().await;
        let ended: Vec<_> = tasks.iter().map(|task| task.is_finished()).collect();
        assert_eq!(ended.iter().position(|ended| *ended), Some(2), "the first of the many");
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
    }
}
