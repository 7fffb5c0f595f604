use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use super::{
    answer::Portions,
    client_certificate::ClientCertificate,
    dial::{Resolved, tcp},
    error::CaError,
    retry,
    tls::{self, Alert, Negotiated},
};
use crate::{
    config::{CaAddress, CaConfig},
    wire::{self, Connection, GivenUp, Limited, Stream},
};

/// How often a CA that has a call and does not answer is asked whether it lives. What grpc-go makes of many PINGs is a
/// connection that it closes: it bears three for each call.
const PINGS: Duration = Duration::from_secs(20);
const MOST_PINGS: u32 = 3;

/// Bytes of a request that go out together: one with a token and a CSR.
const TOGETHER: usize = 4096;

/// One HTTP/2 connection to the CA. It is made for one call and closed after it: the next one is hours away.
pub(super) struct Channel {
    connection: Connection,
    /// What TLS has come to; `None` without it.
    pub(super) negotiated: Option<Negotiated>,
    alert: Alert,
    given_up: GivenUp,
    retry_after: Arc<OnceLock<Duration>>,
}

impl Channel {
    /// Connects to the CA, verifies it, and presents `certificate` if there is one. `before` is what the last
    /// connection there has come to. An answer may then take so long.
    ///
    /// # Errors
    /// What kept the connection from being made.
    pub(super) async fn connect(
        config: &CaConfig,
        address: &CaAddress,
        certificate: Option<&ClientCertificate>,
        before: Option<Negotiated>,
        resolved: &Resolved,
        answer: Duration,
    ) -> Result<Self, CaError> {
        let (alert, given_up) = (Alert::default(), GivenUp::default());
        let certificate = certificate.filter(|_| !address.is_plaintext());
        let mut negotiated = None;
        let stream: Box<dyn Stream> = match address.is_plaintext() {
            true => Box::new(Limited::new(tcp(address, config.timeout, resolved).await?, given_up.clone())),
            false => {
                let stream = tls::connect(config, address, certificate, before, alert.clone(), resolved).await?;
                negotiated = Some(stream.negotiated());
                Box::new(Limited::new(Together::new(stream), given_up.clone()))
            }
        };
        let connection = Connection::new(stream, Some(PINGS.max(answer / MOST_PINGS))).await;
        let connection = connection.map_err(|error| explain(&alert, &given_up, certificate.is_some(), &error))?;
        Ok(Self { connection, negotiated, alert, given_up, retry_after: Arc::default() })
    }

    /// Gives it up for this reason.
    pub(super) fn give_up(&self, reason: &'static str) -> CaError {
        drop(self.given_up.because(reason));
        CaError::GivenUp(reason)
    }

    /// What a broken call means: with a client certificate, a TLS alert is its refusal.
    pub(super) fn explain(&self, presented: bool, error: &dyn std::fmt::Display) -> CaError {
        explain(&self.alert, &self.given_up, presented, error)
    }

    /// Whether the connection met a TLS alert, or brought more than it may.
    pub(super) fn is_broken(&self) -> bool {
        self.alert.was_met() || self.given_up.reason().is_some()
    }

    /// What tonic's client sends requests with.
    pub(super) fn sender(&self) -> Sender {
        let (retry_after, given_up) = (Arc::clone(&self.retry_after), self.given_up.clone());
        Sender { sender: self.connection.sender(), retry_after, given_up }
    }

    /// How long the answer's HTTP headers ask us to wait, if they do.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after.get().copied()
    }
}

/// HTTP/2's preface, a request's headers and its content are written one by one, by tasks that take turns, and each would
/// be sent in a record and a packet of its own. Until the other side has sent something, a flush waits for a turn in which
/// nothing more is written. After that nothing waits: the connection's end comes before all else.
struct Together<S> {
    stream: BufWriter<S>,
    /// Whether something was written since the last flush.
    written: bool,
    answered: bool,
}

impl<S: AsyncWrite> Together<S> {
    fn new(stream: S) -> Self {
        Self { stream: BufWriter::with_capacity(TOGETHER, stream), written: false, answered: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Together<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.answered |= polled.is_ready();
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Together<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written = true;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.written) && !self.answered {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn explain(alert: &Alert, given_up: &GivenUp, presented: bool, error: &dyn std::fmt::Display) -> CaError {
    match given_up.reason() {
        Some(reason) => CaError::GivenUp(reason),
        None => alert.explain(presented, error),
    }
}

/// What tonic's client calls; it looks at the headers of answers.
pub(super) struct Sender {
    sender: wire::Sender,
    retry_after: Arc<OnceLock<Duration>>,
    given_up: GivenUp,
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Sender {
    type Response = http::Response<Portions>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (answer, retry_after) = (self.sender.call(request), Arc::clone(&self.retry_after));
        let given_up = self.given_up.clone();
        Box::pin(async move {
            let answer = answer.await?;
            // What is not gRPC, a proxy's answer for instance, loses its headers on the way through tonic.
            if let Some(wait) = retry::from_headers(answer.headers()) {
                let _ = retry_after.set(wait);
            }
            let is_page = answer.status() != http::StatusCode::OK;
            Ok(answer.map(|body| Portions::new(body, given_up, is_page)))
        })
    }
}
