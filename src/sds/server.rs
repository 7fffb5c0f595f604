use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use super::{
    authority::ForgivingStream,
    limits::{self, Limits, Place},
    service::SdsService,
    socket::SdsSocket,
};
use crate::{config::SdsConfig, store::Workloads};

/// Pause after the kernel had no descriptor for a new connection: there is no event to wait for.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// Serves SDS on the socket for as long as it is polled.
///
/// # Errors
/// When the socket cannot be listened on; a connection's trouble never ends the server.
pub async fn serve(socket: &SdsSocket, config: &SdsConfig, workloads: Arc<dyn Workloads>) -> io::Result<()> {
    let listener = socket.listener()?;
    let limits = Limits::default();
    let service = SdsService::new(workloads, limits.clone(), random());
    let mut full = false;
    loop {
        let Some(stream) = accept(&listener, config).await else { continue };
        match limits.connection() {
            Some(place) => {
                full = false;
                tokio::spawn(connection(stream, service.clone(), place));
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
async fn accept(listener: &UnixListener, config: &SdsConfig) -> Option<UnixStream> {
    let stream = match listener.accept().await {
        Ok((stream, _)) => stream,
        Err(error) => {
            warn!("a connection to the SDS socket cannot be accepted: {error}");
            tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            return None;
        }
    };
    let peer = stream.peer_cred().ok()?.uid();
    if peer == nix::unistd::geteuid().as_raw() || config.allowed_uids.contains(&peer) {
        return Some(stream);
    }
    warn!(uid = peer, "a connection to the SDS socket was refused: add the user to SDS_SHIM_ALLOW_UIDS to allow it");
    None
}

async fn connection(stream: UnixStream, service: SdsService, _place: Place) {
    let served = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(limits::MAX_STREAMS as u32)
        .max_header_list_size(limits::MAX_HEADERS)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(ForgivingStream::new(stream)), service)
        .await;
    if let Err(error) = served {
        debug!("a connection on the SDS socket ended: {error}");
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness nonces only become less different from those of an earlier process.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    u64::from_ne_bytes(bytes)
}
