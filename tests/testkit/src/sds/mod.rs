//! An SDS client that does only what a test tells it: every request of a stream is sent by hand.

mod exchange;
mod health;
mod message;
mod secret;

use std::{
    io,
    path::Path,
    task::{Context, Poll},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sds_shim_proto::envoy::service::{
    discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    time::{Instant, sleep},
};
use tonic::{
    Request, Status,
    codegen::{BoxFuture, Service},
    metadata::{AsciiMetadataKey, BinaryMetadataKey, BinaryMetadataValue, MetadataMap},
};

use crate::{Failure, OrFail, PATIENCE, POLL, process::Process, unix};

pub use exchange::{Closed, Exchange};
pub use health::HealthWatch;
pub use message::{ack, delta_ack, delta_nack, delta_request, nack, request};
pub use secret::{Secret, delta_secrets, secrets};

const ORIGIN: &str = "http://localhost";

/// A state-of-the-world stream.
pub type SdsStream = Exchange<DiscoveryRequest, DiscoveryResponse>;
/// An incremental stream.
pub type DeltaStream = Exchange<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

/// One HTTP/2 connection to an SDS socket; clones share it.
#[derive(Clone)]
pub struct SdsClient {
    sender: Http2,
    service: SecretDiscoveryServiceClient<Http2>,
    metadata: MetadataMap,
}

impl SdsClient {
    /// Connects once, without waiting for a socket that is not there yet (see [`SdsClient::wait_for`]).
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        Self::over(unix::connect(socket).await?).await
    }

    /// Waits until this process accepts connections on its socket and opens one; fails when it ends instead.
    pub async fn wait_for(process: &mut Process, socket: &Path) -> Result<Self, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match Self::connect(socket).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let name = process.name().to_owned();
            if let Some(status) = process.exited() {
                process.wait_exit().await?;
                return Err(process.failure(format!("{name} ended ({status}) before its socket could be used")));
            }
            if Instant::now() > deadline {
                return Err(process.failure(format!("{name} has no usable socket after {PATIENCE:?}: {error}")));
            }
            sleep(POLL).await;
        }
    }

    /// Speaks over a connection that is there already.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Self> {
        let sender = Http2::over(stream).await?;
        let service = SecretDiscoveryServiceClient::with_origin(sender.clone(), http::Uri::from_static(ORIGIN));
        Ok(Self { sender, service, metadata: MetadataMap::new() })
    }

    /// Sends a header with every later call; a name that ends in `-bin` carries any bytes.
    pub fn with_metadata(mut self, name: &str, value: impl AsRef<[u8]>) -> Result<Self, Failure> {
        let value = value.as_ref();
        if name.ends_with("-bin") {
            let key = BinaryMetadataKey::from_bytes(name.as_bytes()).or_fail(format!("use the header {name}"))?;
            self.metadata.insert_bin(key, BinaryMetadataValue::from_bytes(value));
        } else {
            let key = AsciiMetadataKey::from_bytes(name.as_bytes()).or_fail(format!("use the header {name}"))?;
            let value = value.try_into().or_fail(format!("use the value of the header {name}"))?;
            self.metadata.insert(key, value);
        }
        Ok(self)
    }

    /// Sends `authorization: Bearer TOKEN` with every later call.
    pub fn with_token(self, token: &str) -> Result<Self, Failure> {
        self.with_metadata("authorization", format!("Bearer {token}"))
    }

    /// Opens `StreamSecrets`; nothing is sent on it yet.
    pub fn stream(&self) -> SdsStream {
        let mut service = self.service.clone();
        Exchange::open(self.metadata.clone(), move |requests| async move { service.stream_secrets(requests).await })
    }

    /// Opens `DeltaSecrets`; nothing is sent on it yet.
    pub fn delta(&self) -> DeltaStream {
        let mut service = self.service.clone();
        Exchange::open(self.metadata.clone(), move |requests| async move { service.delta_secrets(requests).await })
    }

    /// Calls `FetchSecrets`.
    pub async fn fetch(&self, request: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
        let mut call = Request::new(request);
        *call.metadata_mut() = self.metadata.clone();
        Ok(self.service.clone().fetch_secrets(call).await?.into_inner())
    }
}

/// The bare socket, for bytes that are no gRPC at all.
pub async fn raw(socket: &Path) -> Result<UnixStream, Failure> {
    unix::connect(socket).await.or_fail(format!("connect to {}", socket.display()))
}

/// hyper's connection as the service that generated clients call.
#[derive(Clone)]
pub(crate) struct Http2(http2::SendRequest<tonic::body::Body>);

impl Http2 {
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Self> {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // Ends with the connection: when the server closes it or the last clone of the sender is gone.
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

impl Service<http::Request<tonic::body::Body>> for Http2 {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
