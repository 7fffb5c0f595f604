use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::Executor;
use tokio::{sync::Notify, time::sleep_until};

use super::{crowd::Group, limits};
use crate::budget;

/// What one connection does and makes us hold, and when it has to end.
pub(super) struct Account {
    pub(super) group: Arc<Group>,
    accepted: Instant,
    /// Bytes that were allocated while this connection and its streams were at work and were not freed there. It is
    /// the allocator that counts, so nothing is left out: names, headers, requests, answers, what the libraries keep.
    held: AtomicIsize,
    /// Bytes that the runtime takes for one task of it.
    task: AtomicIsize,
    /// Whether it may still read before it returns to the runtime.
    turn: AtomicBool,
    streams: AtomicUsize,
    /// Calls whose first message has not come.
    begun: AtomicUsize,
    state: Mutex<State>,
    changed: Notify,
    /// Told to calls whose first message has not come when their room is needed.
    crowded: Notify,
}

struct State {
    /// Whether it has begun with HTTP/2.
    opened: bool,
    /// Since when there has been no stream on it.
    idle_since: Instant,
    /// Since when its client has not taken what we write.
    blocked_since: Option<Instant>,
    /// Why it has to end.
    end: Option<&'static str>,
}

impl Account {
    pub(super) fn new(group: Arc<Group>) -> Self {
        let now = Instant::now();
        Self {
            group,
            accepted: now,
            held: AtomicIsize::new(0),
            task: AtomicIsize::new(0),
            turn: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            state: Mutex::new(State { opened: false, idle_since: now, blocked_since: None, end: None }),
            changed: Notify::new(),
            crowded: Notify::new(),
        }
    }

    /// Does something on behalf of the connection, and counts what it takes.
    fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = locked::usage().used;
        let done = work();
        let taken = locked::usage().used.wrapping_sub(before).cast_signed();
        let held = self.held.fetch_add(taken, Ordering::Relaxed).wrapping_add(taken);
        if usize::try_from(held).is_ok_and(|held| held > budget::for_one_connection()) {
            self.end("it exceeds the memory limit of one connection");
        }
        done
    }

    /// Does something within that which stays when the connection is gone, so that it does not count as its own.
    pub(super) fn exempt<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = locked::usage().used;
        let done = work();
        self.held.fetch_sub(locked::usage().used.wrapping_sub(before).cast_signed(), Ordering::Relaxed);
        done
    }

    /// Bytes that it makes us hold.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.held.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn opens_stream(&self) {
        if self.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.changed.notify_one();
        }
    }

    pub(super) fn ends_stream(&self) {
        if self.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.state().idle_since = Instant::now();
            self.changed.notify_one();
        }
    }

    /// The client speaks HTTP/2.
    pub(super) fn opened(&self) {
        let mut state = self.state();
        (state.opened, state.idle_since) = (true, Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    /// The client takes nothing more, or takes something again.
    pub(super) fn blocked(&self, blocked: bool) {
        self.state().blocked_since = blocked.then(Instant::now);
        self.changed.notify_one();
    }

    /// Whether it may read now, and no more until it is polled the next time: what was read becomes streams only when
    /// the connection finds nothing more to read, and takes its memory only then.
    pub(super) fn has_turn(&self) -> bool {
        self.turn.load(Ordering::Relaxed)
    }

    pub(super) fn end_turn(&self) {
        self.turn.store(false, Ordering::Relaxed);
    }

    /// How long it has had no stream, if it has none.
    pub(super) fn idle(&self) -> Option<Duration> {
        (self.streams() == 0).then(|| self.state().idle_since.elapsed())
    }

    #[cfg(test)]
    pub(super) fn takes(&self, bytes: usize) {
        self.held.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn is_ended(&self) -> bool {
        self.state().end.is_some()
    }

    pub(super) fn end(&self, reason: &'static str) {
        self.state().end.get_or_insert(reason);
        self.changed.notify_one();
    }

    /// A call of it begins, and its first message has not come for as long as this is held.
    pub(super) fn begins(&self) -> Begun<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun(self)
    }

    /// Whether there are such calls.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// Its calls whose first message has not come have to make room.
    pub(super) fn make_room(&self) {
        self.crowded.notify_waiters();
    }

    /// Waits until a call whose first message has not come has to make room for others.
    pub(super) async fn crowded(&self) {
        self.crowded.notified().await;
    }

    /// Waits until the connection has to end, and says why. While there are streams and their client reads, no time is
    /// waited for.
    pub(super) async fn ended(&self) -> &'static str {
        loop {
            let (end, deadline) = self.next_end();
            if let Some(reason) = end {
                return reason;
            }
            let at = deadline.map_or_else(Instant::now, |(at, _)| at);
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(at.into()), if deadline.is_some() => {
                    return deadline.map_or_else(Default::default, |(_, reason)| reason);
                }
            }
        }
    }

    /// Why it has to end now, or when it has to if nothing changes.
    fn next_end(&self) -> (Option<&'static str>, Option<(Instant, &'static str)>) {
        let state = self.state();
        let silent = (!state.opened).then(|| (self.accepted + limits::HANDSHAKE, "its client sends nothing"));
        let idle = (self.streams() == 0).then(|| (state.idle_since + limits::IDLE, "it carries no request"));
        let deaf = state.blocked_since.map(|at| (at + limits::READ_WITHIN, "its client does not read"));
        (state.end, [silent, idle, deaf].into_iter().flatten().min())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call whose first message has not come.
pub(super) struct Begun<'a>(&'a Account);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work on behalf of a connection, whose memory counts as its own.
pub(super) struct Measured<F> {
    account: Arc<Account>,
    /// Gone as soon as it is done, so that what it frees is counted too.
    work: Option<Pin<Box<F>>>,
    /// Whether this is the connection itself, which reads, and not one of its streams.
    reads: bool,
}

impl<F> Measured<F> {
    /// The connection itself.
    pub(super) fn connection(account: Arc<Account>, work: impl FnOnce() -> F) -> Self {
        let work = account.measure(|| Box::pin(work()));
        Self { account, work: Some(work), reads: true }
    }
}

impl<F: Future> Future for Measured<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { account, work, reads } = &mut *self;
        if *reads {
            account.turn.store(true, Ordering::Relaxed);
        }
        account.measure(|| {
            let Some(future) = work else { return Poll::Pending };
            let polled = future.as_mut().poll(cx);
            if polled.is_ready() {
                *work = None;
            }
            polled
        })
    }
}

impl<F> Drop for Measured<F> {
    fn drop(&mut self) {
        let Self { account, work, reads } = self;
        account.measure(|| *work = None);
        if !*reads {
            // What the runtime frees after this.
            account.held.fetch_sub(account.task.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Runs the streams of a connection, each as a task of its own.
#[derive(Clone)]
pub(super) struct Streams(pub(super) Arc<Account>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // Called while the connection is polled, so that all this counts already.
        let stream = Measured { account: Arc::clone(&self.0), work: Some(Box::pin(stream)), reads: false };
        let before = locked::usage().used;
        tokio::spawn(stream);
        let task = locked::usage().used.wrapping_sub(before).cast_signed();
        self.0.task.store(task, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::crowd::Crowd;
    use crate::{config::Service, status::Peer};

    #[test]
    fn only_a_connection_that_does_something_has_no_end_in_sight() {
        let membership = Crowd::new().admit(Service::Sds, Peer::default()).expect("there is nobody else");
        let account = &membership.account;
        let reason = || account.next_end().1.map(|(_, reason)| reason);
        assert_eq!(reason(), Some("its client sends nothing"));
        account.opened();
        assert_eq!(reason(), Some("it carries no request"));
        account.opens_stream();
        assert_eq!(reason(), None);
        account.blocked(true);
        assert_eq!(reason(), Some("its client does not read"));
        account.blocked(false);
        account.ends_stream();
        assert_eq!(reason(), Some("it carries no request"));
        assert_eq!(account.next_end().0, None);
        account.end("its place was needed for another client");
        account.end("and for another reason");
        assert_eq!(account.next_end().0, Some("its place was needed for another client"));
    }
}
