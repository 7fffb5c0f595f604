use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time, if the arena bears them. A sidecar has one Envoy with one or a few of them.
pub(super) const MAX_CONNECTIONS: usize = 16;
/// Streams at a time, over all connections, if the arena bears them. Envoy opens one for each secret.
pub(super) const MAX_STREAMS: usize = 256;
/// Bytes of one request. Node metadata of real sidecars stays well below.
pub(super) const MAX_REQUEST: usize = 64 * 1024;
/// Bytes of the headers of one request; they may carry a token.
pub(super) const MAX_HEADERS: u32 = 32 * 1024;
/// Bytes that a client may send on a stream, and on a connection, before we have taken what it sent before. The
/// latter is HTTP/2's own minimum.
pub(super) const STREAM_WINDOW: u32 = 16 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 65_535;
/// Bytes of responses that wait on one stream for a client that does not read.
pub(super) const SEND_BUFFER: usize = 16 * 1024;

/// How long a connection for whose bytes there is no room waits before it looks again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Percent of the arena in use from which on nobody new is let in, and no more bytes are taken from those who are: a
/// full arena would end the process, and with it everyone's service. Above, there is room for a renewal.
const FULL_FOR_CONNECTIONS: usize = 62;
const FULL_FOR_STREAMS: usize = 70;
const FULL_FOR_BYTES: usize = 75;
/// Up to here there is always a large piece.
const HALF: usize = 50;
/// What the layers add to the largest request.
const SLACK: usize = 24 * 1024;

/// Whether a client may send us more: the arena has room, and in one piece as much as the largest request takes.
/// A buffer that cannot be had would end the process, and the HTTP and gRPC layers do not ask before.
pub(super) fn may_read() -> bool {
    match arena_use() {
        ..=HALF => true,
        FULL_FOR_BYTES.. => false,
        _ => Vec::<u8>::new().try_reserve_exact(MAX_REQUEST + SLACK).is_ok(),
    }
}

fn arena_use() -> usize {
    let usage = locked::usage();
    // Without an arena (a test build) there is nothing to fill.
    (usage.used * 100).checked_div(usage.capacity).unwrap_or(0)
}

/// What all clients together may take. Over a limit the newcomer is refused, and everyone else goes on.
#[derive(Clone)]
pub(super) struct Limits {
    connections: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// A place that is free again when this is dropped.
pub(super) struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Default for Limits {
    fn default() -> Self {
        Self { connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)), streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

impl Limits {
    pub(super) fn connection(&self) -> Option<Place> {
        if arena_use() > FULL_FOR_CONNECTIONS {
            return None;
        }
        Arc::clone(&self.connections).try_acquire_owned().ok().map(Place)
    }

    pub(super) fn stream(&self) -> Option<Place> {
        if arena_use() > FULL_FOR_STREAMS {
            return None;
        }
        Arc::clone(&self.streams).try_acquire_owned().ok().map(Place)
    }
}
