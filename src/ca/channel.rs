use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};

use super::{
    client_certificate::ClientCertificate,
    error::CaError,
    tls::{self, Alert},
};
use crate::config::CaConfig;

/// Receive windows: an answer is a few KiB, and nobody may make us hold much more.
const WINDOW: u32 = 64 * 1024;

/// One HTTP/2 connection to the CA. It is made for one call and closed after it: the next one is hours away.
pub(super) struct Channel {
    sender: http2::SendRequest<tonic::body::Body>,
    connection: AbortHandle,
    alert: Alert,
}

impl Channel {
    /// Connects to the CA, verifies it, and presents `certificate` if there is one.
    ///
    /// # Errors
    /// What kept the connection from being made.
    pub(super) async fn connect(config: &CaConfig, certificate: Option<&ClientCertificate>) -> Result<Self, CaError> {
        let address = format!("{}:{}", config.host, config.port);
        let alert = Alert::default();
        let stream: Box<dyn Stream> = match config.plaintext {
            true => Box::new(tcp(config, &address).await?),
            false => Box::new(tls::connect(config, certificate, &address, alert.clone()).await?),
        };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| alert.explain(certificate.is_some(), &error))?;
        let connection = tokio::spawn(async move {
            // How it ended is told by the call that it carried.
            let _ = connection.await;
        });
        Ok(Self { sender, connection: connection.abort_handle(), alert })
    }

    /// What a broken call means: with a client certificate, a TLS alert is its refusal.
    pub(super) fn explain(&self, presented: bool, error: &dyn std::fmt::Display) -> CaError {
        self.alert.explain(presented, error)
    }

    /// Whether the connection met a TLS alert.
    pub(super) fn met_alert(&self) -> bool {
        self.alert.was_met()
    }

    /// What tonic's client sends requests with.
    pub(super) fn sender(&self) -> Sender {
        Sender(self.sender.clone())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// hyper's sender as the service that tonic's client calls.
pub(super) struct Sender(http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Sender {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What HTTP/2 runs on.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub(super) async fn tcp(config: &CaConfig, address: &str) -> Result<TcpStream, CaError> {
    let resolved = tokio::net::lookup_host((config.host.as_str(), config.port)).await;
    let addresses: Vec<SocketAddr> =
        resolved.map_err(|cause| CaError::Resolve { host: config.host.clone(), cause })?.collect();
    let connected = TcpStream::connect(&*addresses).await;
    let stream = connected.map_err(|cause| CaError::Connect { address: address.to_owned(), cause })?;
    // The last bytes of a request must not wait for an acknowledgement; without it the call is only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
