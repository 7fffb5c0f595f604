use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::sleep};

use super::message::Pieces;

/// What a connection was given and has not written yet. A retired key lives on in it, so it must not stay for ever.
#[derive(Clone, Default)]
pub(super) struct Leases(Arc<Shared>);

#[derive(Default)]
struct Shared {
    unwritten: AtomicUsize,
    changed: Notify,
}

/// Bytes that say when the connection has let go of them.
struct Leased {
    bytes: Bytes,
    leases: Leases,
}

impl Leases {
    /// The same pieces, not copied, which count as unwritten for as long as somebody holds them.
    pub(super) fn lease(&self, pieces: Pieces) -> Pieces {
        let lease = |bytes| {
            self.0.unwritten.fetch_add(1, Ordering::Relaxed);
            Bytes::from_owner(Leased { bytes, leases: self.clone() })
        };
        let pieces = pieces.into_iter().map(lease).collect();
        self.0.changed.notify_one();
        pieces
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

impl Drop for Leased {
    fn drop(&mut self) {
        let shared = &self.leases.0;
        if shared.unwritten.fetch_sub(1, Ordering::Relaxed) == 1 {
            shared.changed.notify_one();
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
    async fn what_nobody_writes_is_overdue_and_what_is_written_is_not() {
        let leases = Leases::default();
        assert!(!is_overdue(&leases).await);
        let shared = Bytes::from_static(b"key");
        let pieces = leases.lease(Pieces::from([shared.clone(), shared.clone()]));
        assert_eq!(pieces[0].as_ptr(), shared.as_ptr(), "it was copied");
        let part = pieces[1].slice(1..);
        drop(pieces);
        assert!(is_overdue(&leases).await, "a part of it is still held");
        drop(part);
        assert!(!is_overdue(&leases).await);
    }
}
