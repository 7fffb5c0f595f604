use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::{
    account::{Measured, Streams},
    admission::Admission,
    crowd::{Crowd, Membership, Refusal},
    intake::Intake,
    lease::Leases,
    limits::{self, Limits},
    pace::{Bucket, Lines},
    service::{Calls, Endpoint, SdsService, Served},
    socket::{Listener, SdsSocket},
};
use crate::{
    config::{SdsConfig, Service},
    status::{Peer, Peers, Status},
};

/// Pause after the kernel had no descriptor for a new connection: there is no event to wait for.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// Refusals at once, and then a second: faster ones cost too much time, and those who wait for it cost nothing.
const REFUSALS: u32 = 64;
const REFUSAL_RATE: u32 = 6000;
/// Lines of the log about connections that are refused, in a minute.
const LINES: u32 = 20;

/// The clients of all sockets, who share one memory.
pub struct Clients {
    limits: Limits,
    crowd: Arc<Crowd>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { limits: Limits::default(), crowd: Crowd::new() }
    }
}

impl Clients {
    /// Serves SDS on the socket for as long as it is polled.
    ///
    /// # Errors
    /// When the socket cannot be listened on; a connection's trouble never ends the server.
    pub async fn serve(&self, socket: &SdsSocket, config: &SdsConfig, served: Served) -> io::Result<()> {
        let peers = served.status.peers.clone();
        let shared = Endpoint::new(served, self.limits.clone(), random());
        self.listen(socket, config, (shared, self.limits.clone()), peers).await
    }

    /// Serves other calls on a socket of their own, and shows who makes them as `peers`.
    ///
    /// # Errors
    /// As for [`Clients::serve`].
    pub async fn serve_other(
        &self,
        socket: &SdsSocket,
        config: &SdsConfig,
        calls: Arc<dyn Calls>,
        status: Arc<Status>,
        peers: Peers,
    ) -> io::Result<()> {
        let limits = self.limits.of_applications();
        let shared = Endpoint::other(calls, status, limits.clone());
        self.listen(socket, config, (shared, limits), peers).await
    }

    async fn listen(
        &self,
        socket: &SdsSocket,
        config: &SdsConfig,
        (shared, limits): (Endpoint, Limits),
        peers: Peers,
    ) -> io::Result<()> {
        let mut listener = socket.listener()?;
        let (crowd, service) = (&self.crowd, socket.service());
        let mut refusals = Refusals::new(service);
        let shared = Arc::new(shared);
        let admission = Admission::new(config);
        loop {
            let accepted = accept(socket, &mut listener, &admission, &peers, &mut refusals).await;
            let Some((stream, peer)) = accepted else { continue };
            match crowd.admit(service, peer) {
                Ok(membership) => {
                    let leases = Leases::default();
                    let account = Arc::clone(&membership.account);
                    let other = Some(peer.uid).filter(|uid| !admission.is_own(*uid));
                    let (shared, client) = (Arc::clone(&shared), peers.connected(peer));
                    let answers = SdsService::new(shared, client, other, leases.clone(), Arc::clone(&account));
                    let intake = Intake::new(stream, account, Arc::clone(crowd), limits.clone());
                    tokio::spawn(connection(service.name(), intake, answers, leases, membership));
                }
                Err(refusal) => {
                    drop(stream);
                    refusals.note(peer, &refusal).await;
                }
            }
        }
    }
}

/// Connections that are refused, one after the other.
struct Refusals {
    socket: &'static str,
    pace: Bucket,
    lines: Lines,
}

impl Refusals {
    fn new(service: Service) -> Self {
        let now = Instant::now();
        Self { socket: service.name(), pace: Bucket::new(REFUSALS, REFUSAL_RATE, now), lines: Lines::new(LINES, now) }
    }

    /// Tells of one, and returns when the next may be looked at.
    async fn note(&mut self, peer: Peer, refusal: &Refusal) {
        let (socket, now) = (self.socket, Instant::now());
        let (told, left_out) = self.lines.next(now);
        if left_out > 0 {
            warn!("refused {left_out} more connections to the {socket} socket in a minute");
        }
        match refusal {
            _ if !told => {}
            Refusal::TooMany => {
                warn!(pid = peer.pid, "{socket} connection limit reached; refusing new connections");
            }
            Refusal::TooFast => {
                warn!(
                    pid = peer.pid,
                    uid = peer.uid,
                    "a process connects to the {socket} socket too often; refusing it"
                );
            }
            Refusal::User(reason) => warn!(uid = peer.uid, "refused a connection to the {socket} socket: {reason}"),
        }
        self.pace.take(1, now);
        if let Some(wait) = self.pace.wait(now) {
            // In portions, because timers are coarse.
            tokio::time::sleep(wait.max(Duration::from_millis(5))).await;
        }
    }
}

/// The next connection of somebody who may have one.
async fn accept(
    socket: &SdsSocket,
    listener: &mut Listener,
    admission: &Admission,
    peers: &Peers,
    refusals: &mut Refusals,
) -> Option<(UnixStream, Peer)> {
    let stream = match socket.accept(listener).await {
        Ok(stream) => stream,
        Err(error) => {
            warn!("cannot accept a connection to the {} socket: {error}", socket.service().name());
            tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            return None;
        }
    };
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { pid: credentials.pid().filter(|pid| *pid > 0), uid: credentials.uid() };
    let Err(reason) = admission.admit(&stream, peer.pid, peer.uid) else { return Some((stream, peer)) };
    peers.refused(peer.uid);
    drop(stream);
    refusals.note(peer, &Refusal::User(reason)).await;
    None
}

async fn connection(socket: &'static str, intake: Intake, service: SdsService, leases: Leases, membership: Membership) {
    let account = &membership.account;
    let serve = || {
        http2::Builder::new(Streams(Arc::clone(account)))
            .max_concurrent_streams(limits::streams_of_one())
            .max_header_list_size(limits::MAX_HEADERS)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_send_buf_size(limits::SEND_BUFFER)
            .max_local_error_reset_streams(limits::MAX_RESETS)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(intake), service)
    };
    tokio::select! {
        ended = Measured::connection(Arc::clone(account), serve) => if let Err(error) = ended {
            debug!("a connection on the {socket} socket ended: {error}");
        },
        () = leases.overdue(limits::READ_WITHIN) => {
            warn!("closed a connection on the {socket} socket: its client does not read what it requested");
        }
        reason = account.ended() => warn!("closed a connection on the {socket} socket: {reason}"),
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness nonces only become less different from those of an earlier process.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    u64::from_ne_bytes(bytes)
}
