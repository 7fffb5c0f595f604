use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{account::Account, crowd::Group};

/// How long a connection may begin calls before it is another's turn, if its client never stops sending. What a client
/// of a hundred calls sends is read in a tenth of that at the rate of one process, where the machine is not busy.
const TURN: Duration = Duration::from_secs(1);

/// Who may begin calls where room gets scarce: one connection after the other, those first whose process holds the
/// least. A client that has many calls sends what begins them first and what completes them after it. Were all such
/// clients read alike, calls that have only begun would take all room, and none would be complete.
#[derive(Default)]
pub(super) struct Openers(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// Whose turn it is, and since when.
    turn: Option<(Weak<Account>, Instant)>,
    waiting: VecDeque<Weak<Account>>,
}

impl Openers {
    /// Whether it is this connection's turn; if not, it is in the queue from now on.
    pub(super) fn may_open(&self, account: &Arc<Account>, now: Instant) -> bool {
        let mut queue = self.lock();
        let is_in_turn = |queue: &Queue| queue.turn.as_ref().is_some_and(|(one, _)| is(one, account));
        if !queue.waiting.iter().any(|one| is(one, account)) && !is_in_turn(&queue) {
            queue.waiting.push_back(Arc::downgrade(account));
        }
        // One that does not read on, for whatever reason, keeps nobody waiting for long either.
        let lasts = |since: Instant| now.saturating_duration_since(since) < TURN;
        if queue.turn.as_ref().is_none_or(|(one, since)| one.strong_count() == 0 || !lasts(*since)) {
            // Another one waits again once its client has sent something.
            let before = queue.turn.take().map(|(one, _)| one).filter(|one| is(one, account));
            queue.turn = queue.next(before).map(|one| (one, now));
        }
        is_in_turn(&queue)
    }

    /// The connection needs no turn: all calls that it has begun are complete, and its client sends nothing now.
    pub(super) fn done(&self, account: &Arc<Account>) {
        let Queue { turn, waiting } = &mut *self.lock();
        turn.take_if(|(one, _)| is(one, account));
        waiting.retain(|one| !is(one, account));
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Takes out the one whose turn is next; the one whose turn it was waits again, and is the next only if it is alone.
    fn next(&mut self, before: Option<Weak<Account>>) -> Option<Weak<Account>> {
        self.waiting.retain(|one| one.strong_count() > 0);
        let all: Vec<_> = self.waiting.iter().filter_map(Weak::upgrade).collect();
        let by_group = |group: &Arc<Group>| {
            all.iter().filter(|one| Arc::ptr_eq(&one.group, group)).map(|one| one.held()).sum::<usize>()
        };
        let next = (0..all.len()).min_by_key(|at| by_group(&all[*at].group));
        let next = next.and_then(|at| self.waiting.remove(at));
        match (next, before) {
            (None, before) => before,
            (next, before) => {
                self.waiting.extend(before);
                next
            }
        }
    }
}

fn is(one: &Weak<Account>, account: &Arc<Account>) -> bool {
    std::ptr::eq(one.as_ptr(), Arc::as_ptr(account))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Service, sds::crowd::Crowd, status::Peer};

    #[test]
    fn each_has_its_turn_and_nobody_has_it_for_long() {
        let crowd = Crowd::new();
        let [first, second, third] =
            [1, 2, 3].map(|pid| crowd.admit(Service::Sds, Peer { pid: Some(pid), uid: 7 }).expect("there is a place"));
        let openers = Openers::default();
        let start = Instant::now();
        let may = |one: &crate::sds::crowd::Membership, at| openers.may_open(&one.account, start + at);
        let (at_once, almost) = (Duration::ZERO, TURN / 2);
        assert!(may(&first, at_once));
        assert!(!may(&second, at_once) && !may(&third, at_once));
        assert!(may(&first, almost) && !may(&second, almost));
        // It has begun enough, and waits behind the others.
        assert!(!may(&first, TURN));
        assert!(may(&second, TURN) && !may(&third, TURN));
        openers.done(&second.account);
        assert!(!may(&second, TURN) && may(&third, TURN));
        // Who holds less is the next, whoever came first.
        first.account.takes(1000);
        assert!(!may(&third, 2 * TURN) && may(&second, 2 * TURN));
        // One that is gone is waited for by nobody.
        drop((first, third));
        assert!(may(&second, 3 * TURN));
        // Alone it goes on for as long as it likes.
        assert!(may(&second, 4 * TURN) && may(&second, 5 * TURN));
    }
}
