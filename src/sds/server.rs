use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::{
    admission::Admission,
    authority::ForgivingStream,
    lease::Leases,
    limits::{self, Limits, Place},
    rights::Rights,
    service::{SdsService, Served, Shared},
    socket::{Listener, SdsSocket},
};
use crate::{
    config::SdsConfig,
    status::{Peer, Peers},
};

/// Pause after the kernel had no descriptor for a new connection: there is no event to wait for.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// Serves SDS on the socket for as long as it is polled.
///
/// # Errors
/// When the socket cannot be listened on; a connection's trouble never ends the server.
pub async fn serve(socket: &SdsSocket, config: &SdsConfig, served: Served) -> io::Result<()> {
    let mut listener = socket.listener()?;
    let limits = Limits::default();
    let peers = served.status.peers.clone();
    let open_to_others = Arc::clone(&served.open_to_others);
    let shared = Arc::new(Shared::new(served, limits.clone(), random()));
    let admission = Admission::new(config);
    let mut full = false;
    loop {
        let Some((stream, peer)) = accept(socket, &mut listener, &admission, &peers).await else { continue };
        match limits.connection() {
            Some(place) => {
                full = false;
                let leases = Leases::default();
                let rights = match admission.is_own(peer.uid) {
                    true => Rights::Own,
                    false => Rights::Other(peer.uid, Arc::clone(&open_to_others)),
                };
                let service = SdsService::new(Arc::clone(&shared), peers.connected(peer), rights, leases.clone());
                tokio::spawn(connection(stream, service, leases, place));
            }
            None if !full => {
                full = true;
                warn!("there is no room for more connections on the SDS socket now; they are refused");
            }
            None => {}
        }
    }
}

/// The next connection of somebody who may have one.
async fn accept(
    socket: &SdsSocket,
    listener: &mut Listener,
    admission: &Admission,
    peers: &Peers,
) -> Option<(UnixStream, Peer)> {
    let stream = match socket.accept(listener).await {
        Ok(stream) => stream,
        Err(error) => {
            warn!("a connection to the SDS socket cannot be accepted: {error}");
            tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            return None;
        }
    };
    let credentials = stream.peer_cred().ok()?;
    let peer = Peer { pid: credentials.pid().filter(|pid| *pid > 0), uid: credentials.uid() };
    let Err(reason) = admission.admit(&stream, peer.pid, peer.uid) else { return Some((stream, peer)) };
    peers.refused(peer.uid);
    warn!(uid = peer.uid, "a connection to the SDS socket was refused: {reason}");
    None
}

async fn connection(stream: UnixStream, service: SdsService, leases: Leases, _place: Place) {
    let served = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(limits::streams_of_one())
        .max_header_list_size(limits::MAX_HEADERS)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(ForgivingStream::new(stream)), service);
    tokio::select! {
        ended = served => if let Err(error) = ended {
            debug!("a connection on the SDS socket ended: {error}");
        },
        () = leases.overdue(limits::READ_WITHIN) => {
            warn!("a connection on the SDS socket was closed: its client does not read what it has asked for");
        }
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness nonces only become less different from those of an earlier process.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    u64::from_ne_bytes(bytes)
}
