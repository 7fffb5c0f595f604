use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use sds_shim_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};

use super::{authority::ForgivingStream, service::SdsService, socket::SdsSocket};
use crate::{config::SdsConfig, store::Workloads};

/// Connections at a time. A sidecar has one Envoy with one or a few of them.
const MAX_CONNECTIONS: usize = 64;
/// Streams on one connection. Envoy opens one for each secret.
const MAX_STREAMS: u32 = 256;
/// Bytes of one request. Node metadata of real sidecars stays below 64 KiB.
const MAX_REQUEST: usize = 256 * 1024;
/// Bytes of the headers of one request; they may carry a token.
const MAX_HEADERS: u32 = 32 * 1024;
/// Pause after the kernel had no descriptor for a new connection: there is no event to wait for.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

type Service = TowerToHyperService<SecretDiscoveryServiceServer<SdsService>>;

/// Serves SDS on the socket for as long as it is polled.
///
/// # Errors
/// When the socket cannot be listened on; a connection's trouble never ends the server.
pub async fn serve(socket: &SdsSocket, config: &SdsConfig, workloads: Arc<dyn Workloads>) -> io::Result<()> {
    let listener = socket.listener()?;
    let service = SecretDiscoveryServiceServer::new(SdsService::new(workloads, random()))
        .max_decoding_message_size(MAX_REQUEST)
        // A response holds what we made ourselves.
        .max_encoding_message_size(usize::MAX);
    let service = TowerToHyperService::new(service);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut full = false;
    loop {
        let Some(stream) = accept(&listener, config).await else { continue };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                full = false;
                tokio::spawn(connection(stream, service.clone(), place));
            }
            Err(_) if !full => {
                full = true;
                warn!("{MAX_CONNECTIONS} connections are open on the SDS socket; further ones are refused");
            }
            Err(_) => {}
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

async fn connection(stream: UnixStream, service: Service, _place: OwnedSemaphorePermit) {
    let served = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
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
