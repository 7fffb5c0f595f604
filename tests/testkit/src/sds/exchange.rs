use std::{fmt::Display, future::Future, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{Failure, PATIENCE};

/// A bidirectional stream: requests go out when a test sends them, answers wait until it takes them.
///
/// Dropping it resets the stream, as a client does that goes away.
pub struct Exchange<Q, A> {
    requests: Option<mpsc::UnboundedSender<Q>>,
    answers: mpsc::UnboundedReceiver<Result<A, Closed>>,
    closed: Option<Closed>,
    task: tokio::task::JoinHandle<()>,
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub enum Closed {
    /// The server ended it in order.
    Ok,
    /// The server answered this status, or the connection broke.
    Status(Status),
}

impl Closed {
    /// The gRPC code: `Ok`, or that of the status.
    pub fn code(&self) -> Code {
        match self {
            Self::Ok => Code::Ok,
            Self::Status(status) => status.code(),
        }
    }
}

impl Display for Closed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => write!(out, "ended by the server"),
            Self::Status(status) => write!(out, "{:?}: {}", status.code(), status.message()),
        }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Exchange<Q, A> {
    /// Runs `call` in a task of its own, because a server may hold back its headers until the first request.
    pub(super) fn open<C, F>(metadata: MetadataMap, call: C) -> Self
    where
        C: FnOnce(Request<Requests<Q>>) -> F,
        F: Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
    {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let (incoming, answers) = mpsc::unbounded_channel();
        let mut request = Request::new(Requests(outgoing));
        *request.metadata_mut() = metadata;
        let call = call(request);
        let task = tokio::spawn(async move {
            let end = match call.await {
                Ok(response) => forward(response.into_inner(), &incoming).await,
                Err(status) => Closed::Status(status),
            };
            let _ = incoming.send(Err(end));
        });
        Self { requests: Some(requests), answers, closed: None, task }
    }

    /// Sends one request; a stream that has ended swallows it, which the next receive shows.
    pub fn send(&self, request: Q) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(request);
        }
    }

    /// Closes our half of the stream.
    pub fn finish(&mut self) {
        self.requests = None;
    }

    /// The next answer, which must come within the kit's patience.
    pub async fn recv(&mut self) -> Result<A, Failure> {
        self.recv_within(PATIENCE).await
    }

    /// The next answer, which must come within `limit`.
    pub async fn recv_within(&mut self, limit: Duration) -> Result<A, Failure> {
        match self.next(limit).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(closed)) => Err(Failure::new(format!("the stream was closed instead of answered: {closed}"))),
            None => Err(Failure::new(format!("no answer on the stream within {limit:?}"))),
        }
    }

    /// Nothing must come for `period`, and the stream must stay open.
    pub async fn expect_silence(&mut self, period: Duration) -> crate::Result {
        match self.next(period).await {
            None => Ok(()),
            Some(Ok(_)) => {
                Err(Failure::new(format!("an answer came on a stream that should be silent for {period:?}")))
            }
            Some(Err(closed)) => Err(Failure::new(format!("a stream that should stay open was closed: {closed}"))),
        }
    }

    /// The server must close the stream, with nothing more before that.
    pub async fn expect_closed(&mut self) -> Result<Closed, Failure> {
        match self.next(PATIENCE).await {
            Some(Err(closed)) => Ok(closed),
            Some(Ok(_)) => Err(Failure::new("an answer came on a stream that should be closed")),
            None => Err(Failure::new(format!("the stream was not closed within {PATIENCE:?}"))),
        }
    }

    async fn next(&mut self, limit: Duration) -> Option<Result<A, Closed>> {
        if let Some(closed) = &self.closed {
            return Some(Err(closed.clone()));
        }
        match timeout_at(Instant::now() + limit, self.answers.recv()).await.ok()? {
            Some(Ok(answer)) => Some(Ok(answer)),
            Some(Err(closed)) => {
                self.closed = Some(closed.clone());
                Some(Err(closed))
            }
            None => Some(Err(Closed::Ok)),
        }
    }
}

impl<Q, A> Drop for Exchange<Q, A> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward<A>(mut answers: Streaming<A>, to: &mpsc::UnboundedSender<Result<A, Closed>>) -> Closed {
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => drop(to.send(Ok(answer))),
            Err(status) => return Closed::Status(status),
        }
    }
    Closed::Ok
}

/// The sending half of a channel's requests as the stream that tonic takes.
pub(super) struct Requests<Q>(mpsc::UnboundedReceiver<Q>);

impl<Q> Stream for Requests<Q> {
    type Item = Q;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Q>> {
        self.0.poll_recv(context)
    }
}
