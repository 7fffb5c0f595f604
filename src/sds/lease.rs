use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::sleep};

use super::{limits::MAX_UNWRITTEN, message::Pieces};
use crate::store::Piece;

/// What a connection was given and has not written yet. A retired key lives on in it, so it must not stay for ever.
#[derive(Clone, Default)]
pub struct Leases(Arc<Unwritten>);

#[derive(Default)]
struct Unwritten {
    unwritten: AtomicUsize,
    changed: Notify,
    /// Streams that wait until some of it is written.
    waiting: Mutex<Vec<Waker>>,
}

/// Bytes that say when the connection has let go of them.
struct Leased {
    bytes: Bytes,
    _lease: Lease,
}

/// What counts as unwritten until this is dropped.
struct Lease(Leases);

impl Leases {
    /// The same pieces, not copied, which count as unwritten for as long as somebody holds them.
    pub fn lease(&self, pieces: Pieces) -> Pieces {
        let lease = |piece| {
            self.0.unwritten.fetch_add(1, Ordering::Relaxed);
            let lease = Lease(self.clone());
            match piece {
                Piece::Bytes(bytes) => Piece::Bytes(Bytes::from_owner(Leased { bytes, _lease: lease })),
                Piece::Anchors(text) => Piece::Anchors(text.held_by(Arc::new(lease))),
            }
        };
        let pieces = pieces.into_iter().map(lease).collect();
        self.0.changed.notify_one();
        pieces
    }

    /// Ready while the connection has few pieces to write: what it is to write lies in HTTP/2's store, which grows by
    /// doubling.
    pub fn poll_few(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.unwritten.load(Ordering::Relaxed) < MAX_UNWRITTEN {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until something has been unwritten for so long at a stretch.
    pub(super) async fn overdue(&self, limit: Duration) {
        loop {
            let unwritten = self.0.unwritten.load(Ordering::Relaxed) > 0;
            tokio::select! {
                () = self.0.changed.notified() => {}
                () = sleep(limit), if unwritten => return,
            }
        }
    }
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let left = shared.unwritten.fetch_sub(1, Ordering::Relaxed) - 1;
        if left == 0 {
            shared.changed.notify_one();
        }
        if left < MAX_UNWRITTEN / 2 {
            let waiting = std::mem::take(&mut *shared.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    async fn is_overdue(leases: &Leases) -> bool {
        tokio::time::timeout(10 * LIMIT, leases.overdue(LIMIT)).await.is_ok()
    }

    #[tokio::test]
    async fn an_unwritten_message_is_overdue_and_a_written_one_is_not() {
        let leases = Leases::default();
        assert!(!is_overdue(&leases).await);
        let shared = Bytes::from_static(b"key");
        let mut pieces = leases.lease([shared.clone(), shared.clone()].map(Piece::Bytes).into());
        let [first, second] = [0, 1].map(|at| pieces[at].take().expect("it is not empty"));
        assert_eq!(first.as_ptr(), shared.as_ptr(), "it was copied");
        let part = second.slice(1..);
        drop((pieces, first, second));
        assert!(is_overdue(&leases).await, "a part of it is still held");
        drop(part);
        assert!(!is_overdue(&leases).await);
    }
}
