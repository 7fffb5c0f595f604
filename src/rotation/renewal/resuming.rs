//! What a process that crashes hands on to itself: the certificate that it serves, and the schedule.

use std::time::Duration;

use tracing::info;

use super::{Renewal, TokenSource, waiting::random};
use crate::{
    clock, memory,
    rotation::{
        backoff::Backoff,
        generation::{self, Generation, Parts},
    },
};

/// An attempt that crashes the process counts as one that failed: the CA is asked again after this time, or a part of the
/// life that is left. Ten crashes within ten minutes would end the process.
const AFTER_A_CRASH: Duration = Duration::from_secs(75);
const PART: u32 = 8;
/// In the word of the back-off: the wait counts for a successor that has nothing to serve as well.
pub(super) const WANTED: u64 = 1 << 63;

impl<T: TokenSource> Renewal<T> {
    /// Hands on what is held, so that a successor serves it and goes on with the same schedule. There is one renewal
    /// whose token does not come with requests.
    pub(super) fn hand_on(&self) {
        let Some(held) = self.held.as_ref().filter(|_| !T::FIXED) else { return };
        let parts = |room: usize| {
            let chain = held.chain().ok()?;
            let (received, due, id, leaving) = (self.received, self.due, &self.identity, self.roots.leaving());
            let patience = self.failover.patience().collect();
            Parts { received, due, id, patience, chain: &chain.pem, anchors: &self.answered, leaving }.write(room)
        };
        generation::hand_on(&self.shown, parts);
    }

    /// The same when an attempt begins, which may crash the process.
    pub(super) fn hand_on_for_an_attempt(&self) {
        match self.left() {
            Some(left) => self.hand_on_patience(AFTER_A_CRASH.min(left / PART), false),
            None if T::FIXED => {}
            // With nothing to serve, a start that crashes again and again waits as if the CA had failed.
            None => {
                let mut backoff = Backoff::from_word(self.backoff.as_word());
                let wait = backoff.next(random());
                locked::hand_on_patience(wait, backoff.as_word() | WANTED);
            }
        }
        self.hand_on();
    }

    /// For how long a successor is to leave the CA alone, whether also with nothing to serve, and how often the CA has
    /// failed.
    pub(super) fn hand_on_patience(&self, wait: Duration, wanted: bool) {
        if !T::FIXED {
            locked::hand_on_patience(wait, self.backoff.as_word() | if wanted { WANTED } else { 0 });
        }
    }

    /// Goes on where a crashed process has ended, if we are its successor: serves what it had, verified as the CA's answer
    /// was. Answers how long it is until the renewal, unless there is nothing to serve.
    pub(super) async fn resume(&mut self) -> Option<Duration> {
        if T::FIXED {
            return None;
        }
        let (patience, failures) = locked::inherited_patience();
        self.backoff = Backoff::from_word(failures & !WANTED);
        let now = clock::now();
        let (read, certificate) = generation::inherited(Some(&self.identity), &self.key, now)?;
        let Generation { received, due, id, mut issued, leaving, patience: unasked } = read;
        // Where another trust domain is wanted by now, that is asked for at once, unless the CA is to be left alone.
        let own = self.file_roots.borrow().own.clone();
        let moves = own != id.domain() && !patience.is_zero();
        (self.received, self.due, self.asked) = (received, due, if moves { own } else { id.domain() });
        self.answered = issued.roots.clone();
        if issued.svid.ends_before_its_leaf() {
            issued.svid.look_at_paths(&self.anchors(), now);
        }
        self.shown.identify(id.as_str(), id.in_domain(&self.file_roots.borrow().own).as_str());
        self.identity = id;
        self.failover.still_patient(&unasked);
        self.roots.still_leaving(leaving);
        self.roots.publish(&issued, self.identity.domain(), certificate).await;
        memory::look_again();
        let until_due = Duration::from_secs(due.saturating_sub(now).max(0) as u64);
        let wait = if moves { patience } else { until_due.max(patience) };
        info!(
            identity = %self.identity,
            serial = issued.svid.serial(),
            not_after = clock::rfc3339(issued.svid.validity().1),
            renewal_in_s = wait.as_secs(),
            "still serving the certificate from before the crash"
        );
        self.held = Some(issued.svid);
        self.shown.resumed(received, now.saturating_add(wait.as_secs() as i64));
        self.hand_on_patience(patience, failures & WANTED != 0);
        self.hand_on();
        Some(wait)
    }
}
