use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget;

/// Connections at a time, if the arena of the usual size bears them. A sidecar has one Envoy with one or a few.
const MAX_CONNECTIONS: usize = 16;
/// Streams at a time, over all connections, likewise. Envoy opens one for each secret.
const MAX_STREAMS: usize = 256;
/// Bytes of one request. Node metadata of real sidecars stays well below.
pub(super) const MAX_REQUEST: usize = 64 * 1024;
/// Bytes of the headers of one request; they may carry a token.
pub(super) const MAX_HEADERS: u32 = 32 * 1024;
/// Bytes of the same on their way. HTTP/2 looks at them only when they are whole, after up to five frames, and then
/// takes twice their size in one piece.
pub(super) const MAX_HEADER_BLOCK: usize = 48 * 1024;
/// Bytes that a client may send on a stream, and on a connection, before we have taken what it sent before. The
/// latter is HTTP/2's own minimum.
pub(super) const STREAM_WINDOW: u32 = 16 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 65_535;
/// Bytes of responses that wait on one stream for a client that does not read.
pub(super) const SEND_BUFFER: usize = 16 * 1024;

/// How long a client may leave what it was sent unread: a retired key lives on in it.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(10);
/// The least window for a stream that a client may ask for. In smaller portions HTTP/2 would copy what it sends into a
/// buffer of its own, where a key would outlive its retirement. Envoy's least is 65,535.
pub(super) const MIN_WINDOW: u32 = 16 * 1024;

/// How long a connection for whose bytes there is no room waits before it looks again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// What the largest request takes in whole pieces: for itself, as it grows in its buffer; for its names, which are
/// copied.
const PIECES: [usize; 2] = [MAX_REQUEST + 24 * 1024, MAX_REQUEST];
/// Bytes of memory that one byte from a client can make us take before we look again: the shortest request is a header
/// block of 13 bytes, and a stream takes 5 KiB.
const AMPLIFICATION: usize = 400;

/// How many bytes a client may send us before we look again, possibly none: the arena has room for what they can
/// become. A buffer that cannot be had would end the process, and the HTTP and gRPC layers do not ask before.
pub(super) fn may_read() -> usize {
    let room = budget::for_clients() / AMPLIFICATION;
    if room > 0 && budget::has_pieces_for_clients(&PIECES) { room } else { 0 }
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
        let places = |most: usize| Arc::new(Semaphore::new(most * budget::share()));
        Self { connections: places(MAX_CONNECTIONS), streams: places(MAX_STREAMS) }
    }
}

/// Streams at a time on one connection.
pub(super) fn streams_of_one() -> u32 {
    (MAX_STREAMS * budget::share()) as u32
}

impl Limits {
    pub(super) fn connection(&self) -> Option<Place> {
        if !budget::has_room_for_connection() {
            return None;
        }
        Arc::clone(&self.connections).try_acquire_owned().ok().map(Place)
    }

    pub(super) fn stream(&self) -> Option<Place> {
        if !budget::has_room_for_stream() {
            return None;
        }
        Arc::clone(&self.streams).try_acquire_owned().ok().map(Place)
    }
}
