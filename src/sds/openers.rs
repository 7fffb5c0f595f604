use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::account::Account;

/// How long a connection may begin calls before it is another's turn: a hundred calls take two frames each, at the rate
/// of one process.
const TURN: Duration = Duration::from_millis(100);

/// Who may begin calls where room gets scarce: one connection after the other. A client that has many calls sends what
/// begins them first and what completes them after it. Were all such clients read alike, calls that have only begun
/// would take all room, and none would be complete.
#[derive(Default)]
pub(super) struct Openers(Mutex<VecDeque<Opener>>);

struct Opener {
    account: Weak<Account>,
    /// Since when it has been the first.
    since: Option<Instant>,
}

impl Openers {
    /// Whether it is this connection's turn; if not, it is in the queue from now on.
    pub(super) fn may_open(&self, account: &Arc<Account>, now: Instant) -> bool {
        let is = |opener: &Opener| std::ptr::eq(opener.account.as_ptr(), Arc::as_ptr(account));
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|opener| opener.account.strong_count() > 0);
        if !queue.iter().any(is) {
            queue.push_back(Opener { account: Arc::downgrade(account), since: None });
        }
        // One that does not read on, for whatever reason, keeps nobody waiting for long either.
        let over = |opener: &Opener| opener.since.is_some_and(|since| now.saturating_duration_since(since) >= TURN);
        if queue.front().is_some_and(over) {
            queue.rotate_left(1);
            queue.iter_mut().for_each(|opener| opener.since = None);
        }
        queue.front_mut().is_some_and(|first| {
            first.since.get_or_insert(now);
            is(first)
        })
    }

    /// The client of this connection has nothing more to be read.
    pub(super) fn done(&self, account: &Arc<Account>) {
        let other = |opener: &Opener| !std::ptr::eq(opener.account.as_ptr(), Arc::as_ptr(account));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(other);
    }
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
        let (at_once, almost) = (Duration::ZERO, TURN - Duration::from_millis(1));
        assert!(may(&first, at_once));
        assert!(!may(&second, at_once) && !may(&third, at_once));
        assert!(may(&first, almost) && !may(&second, almost));
        // It has begun enough, and waits behind the others.
        assert!(!may(&first, TURN));
        assert!(may(&second, TURN) && !may(&third, TURN));
        openers.done(&second.account);
        assert!(may(&third, TURN) && !may(&second, TURN));
        // One that is gone is waited for by nobody.
        drop((first, third));
        assert!(may(&second, TURN));
        // Alone it goes on for as long as it likes.
        assert!(may(&second, 2 * TURN) && may(&second, 3 * TURN));
    }
}
