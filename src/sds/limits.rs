use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{account::Account, openers::Openers};
use crate::{
    budget::{self, Taker},
    config::Service,
};

/// Connections at a time, if the arena of the usual size bears them. A sidecar has one Envoy with one or a few.
const MAX_CONNECTIONS: usize = 16;
/// As many more for processes that have none yet, such as our own commands and probes.
pub(super) const KEPT_CONNECTIONS: usize = 2;
/// Streams at a time, over all connections, likewise. Envoy opens one for each secret.
const MAX_STREAMS: usize = 256;
/// The same of the Workload API: a library of an application opens one or two.
const MAX_STREAMS_OF_APPLICATIONS: usize = 64;
/// Streams at a time on one connection. What HTTP/2 remembers of them grows by doubling in one piece.
const STREAMS_OF_ONE: usize = 100;
/// Streams that were reset because of what the client did, over the life of a connection. HTTP/2 remembers them for a
/// while.
pub(super) const MAX_RESETS: usize = 256;
/// Bytes of one request. Node metadata of real sidecars stays well below.
pub(super) const MAX_REQUEST: usize = 64 * 1024;
/// Bytes of a message in which hardly anything is: of all calls but those of SDS.
pub(super) const MAX_SMALL_REQUEST: usize = 64;
/// Bytes of the headers of one request; they may carry a token.
pub(super) const MAX_HEADERS: u32 = 32 * 1024;
/// Bytes of the same on their way. HTTP/2 looks at them only when they are whole, after up to five frames, and then
/// takes twice their size in one piece.
pub(super) const MAX_HEADER_BLOCK: usize = 48 * 1024;
/// How many headers a request may have. One that is empty takes a byte on its way, and a hundred in memory.
pub(super) const MAX_FIELDS: usize = 64;
/// Bytes that a client may send on a stream, and on a connection, before we have taken what it sent before. The
/// latter is HTTP/2's own minimum.
pub(super) const STREAM_WINDOW: u32 = 16 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 65_535;
/// Bytes of responses that wait on one stream for a client that does not read.
pub(super) const SEND_BUFFER: usize = 16 * 1024;
/// Pieces of responses that wait on one connection for the same.
pub(super) const MAX_UNWRITTEN: usize = 64;

/// How long a client may leave what it was sent unread: a retired key lives on in it.
pub(super) const READ_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take to begin with HTTP/2, and a stream with its first message.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
pub(super) const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a connection may stay without a stream; and where its place is needed.
pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(1);
/// The least window for a stream that a client may ask for. In smaller portions HTTP/2 would copy what it sends into a
/// buffer of its own, where a key would outlive its retirement. Envoy's least is 65,535.
pub(super) const MIN_WINDOW: u32 = 16 * 1024;

/// What all connections of one process may send: this many frames, or parts of long ones, at once, and then so many a
/// second. An Envoy sends a few for each secret and rotation. Beyond, its bytes wait in the kernel.
pub(super) const BURST: u32 = 1000;
pub(super) const RATE: u32 = 2000;
/// How many connections it may open at once, and then a second. Beyond, they are refused.
pub(super) const CONNECTION_BURST: u32 = 600;
pub(super) const CONNECTION_RATE: u32 = 100;
/// Lines of the log that it may cause in a minute, of each kind.
pub(super) const LINES: u32 = 120;

/// The most that is read of a connection before what was read has been dealt with.
const READ: usize = 512;
/// The same where room gets scarce: each of a few calls.
const FEW: usize = 128;
/// Less than this is not read, because it would not go on with it.
const LEAST: usize = 16;
/// How long a connection for whose bytes there is no room waits before it looks again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long a request waits until there is room for it. Then it is taken to be refused, because others that have begun
/// may be behind it; where there is no room for that either, those are refused.
pub(super) const REFUSED_AFTER: Duration = Duration::from_millis(500);
/// How long a connection waits for room before somebody has to leave.
pub(super) const RELIEVED_AFTER: Duration = Duration::from_secs(1);
/// Bytes of headers that are taken where only a refusal can come of them.
pub(super) const SMALL_HEADERS: usize = 4096;

/// What must be there in whole pieces: for the largest request, as it grows in its buffer; for its names, which are
/// copied; for the frames that HTTP/2 has in store for one connection, which grow by doubling.
const PIECES: [usize; 3] = [MAX_REQUEST + 24 * 1024, MAX_REQUEST, 160 * 1024];
/// Bytes of memory that one byte from a client can make us take before we look again: the shortest request is a header
/// block of 13 bytes, and a stream takes 5 KiB.
const AMPLIFICATION: usize = 400;
/// Bytes that a stream takes after its place, when it is polled for the first time.
const START: usize = 4096;
/// Bytes that one takes in all as long as its first message has not come, nearly.
const BEGUN: usize = 6 * 1024;

/// What all clients together may take. Over a limit the newcomer is refused, and everyone else goes on.
#[derive(Clone)]
pub(super) struct Limits {
    taker: Taker,
    /// All places for streams, and those that are free.
    places: usize,
    streams: Arc<Semaphore>,
    /// For the first stream of a connection, where there is no other place: a probe needs no more.
    kept: Arc<Semaphore>,
    /// Streams that have a place and were not polled yet.
    unstarted: Arc<AtomicUsize>,
    openers: Arc<Openers>,
}

/// A place for a stream, free again when this is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    account: Arc<Account>,
    unstarted: Option<Arc<AtomicUsize>>,
}

/// Whether there is no room for large requests of these clients now.
pub(super) fn is_short(taker: Taker) -> bool {
    budget::for_clients(taker) < LEAST * AMPLIFICATION || !budget::has_pieces_for_clients(taker, &PIECES)
}

/// Who comes to this socket.
pub(super) fn taker_of(service: Service) -> Taker {
    match service {
        Service::Sds => Taker::Envoy,
        Service::WorkloadApi => Taker::Application,
    }
}

/// Connections at a time.
pub(super) fn connections() -> usize {
    MAX_CONNECTIONS * budget::share()
}

/// Streams at a time on one connection.
pub(super) fn streams_of_one() -> u32 {
    (STREAMS_OF_ONE * budget::share()) as u32
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(Taker::Envoy, MAX_STREAMS, Arc::default())
    }
}

impl Limits {
    fn new(taker: Taker, streams: usize, unstarted: Arc<AtomicUsize>) -> Self {
        let places = streams * budget::share();
        let streams = Arc::new(Semaphore::new(places));
        let kept = Arc::new(Semaphore::new(connections() + KEPT_CONNECTIONS));
        Self { taker, places, streams, kept, unstarted, openers: Arc::default() }
    }

    /// Those of the Workload API: its own places, in the same memory, of which it leaves some.
    pub(super) fn of_applications(&self) -> Self {
        Self::new(Taker::Application, MAX_STREAMS_OF_APPLICATIONS, Arc::clone(&self.unstarted))
    }

    /// Whose they are.
    pub(super) fn taker(&self) -> Taker {
        self.taker
    }

    /// How many bytes a client may send us before we look again, possibly none: the arena has room for what they can
    /// become. A buffer that cannot be had would end the process, and the HTTP and gRPC layers do not ask before.
    pub(super) fn may_read(&self, account: &Account) -> usize {
        // Where all places are taken, one that begins is refused: rather it waits a while.
        if self.streams.available_permits() == 0 && account.streams() > 0 {
            return 0;
        }
        let most = READ.min(self.room() / AMPLIFICATION);
        if most < LEAST || is_short(self.taker) { 0 } else { most }
    }

    /// Bytes that clients may take beside those who have just begun.
    fn room(&self) -> usize {
        budget::for_clients(self.taker).saturating_sub(self.unstarted.load(Ordering::Relaxed) * START)
    }

    /// How many bytes the connection may send us with which calls begin: where there is no room for as many calls as one
    /// may have, a few, and only when it is its turn.
    pub(super) fn may_open(&self, account: &Arc<Account>) -> usize {
        let many = streams_of_one() as usize;
        let few_places = self.streams.available_permits() < many.min(self.places / 2);
        match few_places || self.room() < many * BEGUN {
            false => READ,
            true if self.openers.may_open(account, Instant::now()) => FEW,
            true => 0,
        }
    }

    /// The connection has nothing to be read now. Where calls of it are not complete, that may be because its client is
    /// slow.
    pub(super) fn idle(&self, account: &Arc<Account>) {
        if !account.has_begun() {
            self.openers.done(account);
        }
    }

    /// The same for bytes from which no stream can come.
    pub(super) fn may_read_the_least(&self) -> usize {
        if budget::has_room_for_the_least(self.taker) { READ } else { 0 }
    }

    pub(super) fn stream(&self, account: &Arc<Account>) -> Option<Place> {
        let unstarted = self.unstarted.load(Ordering::Relaxed);
        let general = budget::has_room_for_stream(self.taker, unstarted * START);
        let general = general.then(|| Arc::clone(&self.streams).try_acquire_owned().ok()).flatten();
        let kept = || {
            let may = account.streams() == 0 && budget::has_room_for_the_least(self.taker);
            may.then(|| Arc::clone(&self.kept).try_acquire_owned().ok()).flatten()
        };
        let permit = general.or_else(kept)?;
        account.opens_stream();
        self.unstarted.fetch_add(1, Ordering::Relaxed);
        let unstarted = Some(Arc::clone(&self.unstarted));
        Some(Place { _permit: permit, account: Arc::clone(account), unstarted })
    }
}

impl Place {
    /// What the stream takes is there to be seen from now on.
    pub(super) fn started(&mut self) {
        if let Some(unstarted) = self.unstarted.take() {
            unstarted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.started();
        self.account.ends_stream();
    }
}
