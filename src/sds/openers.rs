use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::account::Account;

/// How long a connection may begin calls before it is another's turn, if its client never stops sending. What a client
/// of a hundred calls sends is read in a tenth of that at the rate of one process, where the machine is not busy.
const TURN: Duration = Duration::from_secs(1);
/// The same if its client has sent nothing for so long.
const SILENT: Duration = Duration::from_millis(200);

/// Who may begin calls where room gets scarce: one connection after the other, and one process after the other. A
/// client that has many calls sends what begins them first and what completes them after it. Were all such clients read
/// alike, calls that have only begun would take all room, and none would be complete.
#[derive(Default)]
pub(super) struct Openers(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    turn: Option<Turn>,
    waiting: VecDeque<Weak<Account>>,
}

struct Turn {
    of: Weak<Account>,
    since: Instant,
    /// When it was taken last.
    taken: Instant,
}

impl Openers {
    /// Whether it is this connection's turn; if not, it is in the queue from now on.
    pub(super) fn may_open(&self, account: &Arc<Account>, now: Instant) -> bool {
        let mut queue = self.lock();
        queue.waiting.retain(|one| one.strong_count() > 0);
        let mut again = None;
        if let Some(turn) = &mut queue.turn {
            let own = is(&turn.of, account);
            let is_over = |from: Instant, limit| now.saturating_duration_since(from) >= limit;
            let silent = is_over(turn.taken, SILENT) && !own;
            if turn.of.strong_count() == 0 || silent || is_over(turn.since, TURN) {
                // It waits again once its client sends something.
                again = queue.turn.take().map(|turn| turn.of).filter(|_| own);
            } else if own {
                turn.taken = now;
                return true;
            }
        }
        if again.is_none() && !queue.waiting.iter().any(|one| is(one, account)) {
            queue.waiting.push_back(Arc::downgrade(account));
        }
        if queue.turn.is_none() {
            let next = queue.next();
            // The one whose turn it was is the next only if it is alone.
            let next = next.or_else(|| again.take());
            queue.waiting.extend(again);
            queue.turn = next.map(|of| Turn { of, since: now, taken: now });
            if let Some(account) = queue.turn.as_ref().and_then(|turn| turn.of.upgrade()) {
                *account.group.opened() = Some(now);
            }
        }
        queue.turn.as_ref().is_some_and(|turn| is(&turn.of, account))
    }

    /// The connection needs no turn: all calls that it has begun are complete, and its client sends nothing now.
    pub(super) fn done(&self, account: &Arc<Account>) {
        let Queue { turn, waiting } = &mut *self.lock();
        turn.take_if(|turn| is(&turn.of, account));
        waiting.retain(|one| !is(one, account));
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Takes out the one whose turn is next: of the process that has waited longest for one.
    fn next(&mut self) -> Option<Weak<Account>> {
        let last = |one: &Weak<Account>| one.upgrade().and_then(|one| *one.group.opened());
        let next = (0..self.waiting.len()).min_by_key(|at| last(&self.waiting[*at]))?;
        self.waiting.remove(next)
    }
}

fn is(one: &Weak<Account>, account: &Arc<Account>) -> bool {
    std::ptr::eq(one.as_ptr(), Arc::as_ptr(account))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Service,
        sds::crowd::{Crowd, Membership},
        status::Peer,
    };

    #[test]
    fn each_opener_has_its_turn_and_none_keeps_it() {
        let crowd = Crowd::new();
        let admit = |pid| crowd.admit(Service::Sds, Peer { pid: Some(pid), uid: 7 }).expect("there is a place");
        let [first, second, third] = [1, 2, 3].map(admit);
        let openers = Openers::default();
        let start = Instant::now();
        let may = |one: &Membership, at| openers.may_open(&one.account, start + at);
        assert!(may(&first, Duration::ZERO));
        assert!(!may(&second, Duration::ZERO) && !may(&third, Duration::ZERO));
        // It goes on, for as long as a turn lasts.
        for part in 1..10 {
            assert!(may(&first, TURN * part / 10) && !may(&second, TURN * part / 10));
        }
        assert!(!may(&first, TURN));
        assert!(may(&second, TURN) && !may(&third, TURN));
        openers.done(&second.account);
        assert!(!may(&second, TURN) && may(&third, TURN));
        // One that sends nothing has no turn for long.
        assert!(!may(&first, TURN + SILENT / 2) && may(&first, TURN + SILENT));
        // One that is gone is waited for by nobody.
        drop((first, third));
        assert!(may(&second, TURN + SILENT));
        // Alone it goes on for as long as it likes.
        assert!(may(&second, 3 * TURN) && may(&second, 4 * TURN));
    }

    /// However many connections another process has.
    #[test]
    fn processes_take_turns() {
        let crowd = Crowd::new();
        let admit = |pid| crowd.admit(Service::Sds, Peer { pid: Some(pid), uid: 7 }).expect("there is a place");
        let (many, one): (Vec<_>, _) = ((0..10).map(|_| admit(1)).collect(), admit(2));
        let openers = Openers::default();
        let start = Instant::now();
        let may = |one: &Membership, at| openers.may_open(&one.account, start + at);
        assert!(may(&many[0], Duration::ZERO));
        assert!(!many[1..].iter().any(|other| may(other, Duration::ZERO)));
        assert!(!may(&one, Duration::ZERO) && may(&one, SILENT), "the others came first");
        assert!(!may(&many[1], SILENT));
        openers.done(&one.account);
        let later = SILENT + Duration::from_millis(1);
        assert!(may(&many[1], later) && !may(&one, later));
        assert!(may(&one, later + SILENT));
    }
}
