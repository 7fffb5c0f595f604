//! HTTP/2 clients over whatever kind of stream: one copy of the protocol's code, for the CA, for our own socket and for
//! that of a SPIFFE Workload API.

mod code;
mod limits;
mod protobuf;

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};

pub use code::code_name;
pub use limits::{GivenUp, Limited, MAX_ANSWER, MAX_BYTES, Tap};
pub use protobuf::{Content, Overlong, PREFIX, Prefix, Varint, field};

/// Receive windows: an answer is a few KiB, and nobody may make us hold much more.
const WINDOW: u32 = 64 * 1024;
/// How long a peer that lives may take for the answer to a PING.
const LIVES: Duration = Duration::from_secs(10);

/// What HTTP runs on.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection; it is closed when this is dropped.
pub struct Connection {
    sender: http2::SendRequest<tonic::body::Body>,
    task: AbortHandle,
}

impl Connection {
    /// Speaks HTTP/2 on this stream. While a call is open, the peer is asked this often whether it still lives.
    ///
    /// # Errors
    /// What kept the two sides from it.
    pub async fn new(stream: Box<dyn Stream>, pings: Option<Duration>) -> Result<Self, hyper::Error> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(pings)
            .keep_alive_timeout(LIVES)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        let task = tokio::spawn(async move {
            // How it ended is told by the call that it carried.
            let _ = connection.await;
        });
        Ok(Self { sender, task: task.abort_handle() })
    }

    /// What requests are sent with.
    pub fn sender(&self) -> Sender {
        Sender(self.sender.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// hyper's sender as the service that tonic's clients call.
pub struct Sender(http2::SendRequest<tonic::body::Body>);

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
