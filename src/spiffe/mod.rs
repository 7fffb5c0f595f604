//! The client of a SPIFFE Workload API, such as SPIRE's agent: who the workload is, and whom it may trust, as it is told
//! there.

#[cfg(fuzzing)]
#[path = "../../tests/fuzz/inside/workload_api.rs"]
pub mod fuzz;
mod message;

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::net::UnixStream;
use tonic::{Code, Status};
use tower_service::Service;

pub use message::{KeyDer, Svid, Told};

use crate::{
    bounded::foreign_text,
    identity::SpiffeId,
    wire::{Connection, GivenUp, Limited},
};
use message::Receiver;

/// The one call that is made ("SPIFFE Workload API", section 6.2), and the header that each call must carry (section 3).
const CALL: &str = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";
const HEADER: (&str, &str) = ("workload.spiffe.io", "true");
/// An empty message, not compressed ("gRPC over HTTP/2").
const REQUEST: &[u8] = &[0; 5];
/// Characters of a foreign message that are told.
const MOST_TOLD: usize = 256;

/// Why there is nothing that could be used.
#[derive(Debug, thiserror::Error)]
pub enum SpiffeError {
    /// Nobody serves the socket.
    #[error("no Workload API at {path}: {cause}")]
    Unreachable {
        /// The socket.
        path: String,
        /// What went wrong.
        cause: io::Error,
    },
    /// The answer is an error.
    #[error("the Workload API answered {}: {message}", crate::wire::code_name(*.code))]
    Refused {
        /// gRPC's code.
        code: Code,
        /// What stands beside it.
        message: String,
    },
    /// Something else serves the socket.
    #[error("the server at the socket does not speak gRPC: HTTP status {0}")]
    Stranger(StatusCode),
    /// It has ended a stream that lasts for ever, without a reason.
    #[error("the Workload API ended the stream")]
    Ended,
    /// The connection broke.
    #[error("the connection to the Workload API broke: {0}")]
    Broken(String),
    /// It sends what it must not send.
    #[error("the Workload API's answer was rejected: {0}")]
    Message(&'static str),
}

/// Where a Workload API is, and what is asked of it.
pub struct WorkloadApi {
    socket: PathBuf,
    wanted: Option<SpiffeId>,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

/// A stream on which it tells what has changed.
pub struct Updates {
    /// Closed when this is dropped.
    _connection: Connection,
    /// The headers of the answer, until they are there: some servers send them with their first message alone.
    answer: Option<Answer>,
    body: Option<Incoming>,
    receiver: Arc<Mutex<Receiver>>,
    given_up: GivenUp,
}

impl WorkloadApi {
    /// At this socket. Of several identities, `wanted` counts, or else the first.
    pub fn new(socket: PathBuf, wanted: Option<SpiffeId>) -> Self {
        Self { socket, wanted }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The identity that counts, if one alone does.
    pub fn wanted(&self) -> Option<&SpiffeId> {
        self.wanted.as_ref()
    }

    /// Connects, and asks to be told.
    ///
    /// # Errors
    /// What kept us from it.
    pub async fn watch(&self) -> Result<Updates, SpiffeError> {
        let (receiver, given_up) = (Arc::new(Mutex::new(Receiver::new(self.wanted.clone()))), GivenUp::default());
        let (taker, giver) = (Arc::clone(&receiver), given_up.clone());
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| {
            let path = self.socket.display().to_string();
            SpiffeError::Unreachable { path, cause }
        })?;
        // What comes is taken below HTTP/2, whose buffers do not lie in secret memory.
        let tap = move |content: &mut [u8]| {
            if let Err(flaw) = taker.lock().unwrap_or_else(PoisonError::into_inner).take(content) {
                drop(giver.because(flaw));
            }
        };
        let stream = Limited::lasting(stream, given_up.clone(), Box::new(tap));
        let broken = |error: hyper::Error| explain(&given_up, &error);
        let connection = Connection::new(Box::new(stream), None).await.map_err(broken)?;
        let request = http::Request::post(CALL)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .header(HEADER.0, HEADER.1)
            .body(tonic::body::Body::new(Full::new(Bytes::from_static(REQUEST))));
        let request = request.map_err(|error| SpiffeError::Broken(error.to_string()))?;
        let answer = connection.sender().call(request);
        Ok(Updates { _connection: connection, answer: Some(answer), body: None, receiver, given_up })
    }
}

impl Updates {
    /// What it tells next. May be dropped and called again.
    ///
    /// # Errors
    /// Why nothing more comes.
    pub async fn next(&mut self) -> Result<Told, SpiffeError> {
        loop {
            if let Some(told) = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).told() {
                return Ok(told);
            }
            if let Some(reason) = self.given_up.reason() {
                return Err(SpiffeError::Message(reason));
            }
            let Some(body) = &mut self.body else {
                self.begins().await?;
                continue;
            };
            match body.frame().await {
                // Its content has been taken; what HTTP/2 has of it is empty.
                Some(Ok(frame)) => {
                    if let Some(error) = frame.trailers_ref().and_then(status) {
                        return Err(error);
                    }
                }
                Some(Err(error)) => return Err(explain(&self.given_up, &error)),
                None => return Err(SpiffeError::Ended),
            }
        }
    }

    /// Waits for the headers of the answer.
    async fn begins(&mut self) -> Result<(), SpiffeError> {
        let answer = match &mut self.answer {
            Some(answer) => answer.await,
            None => return Err(SpiffeError::Ended),
        };
        self.answer = None;
        let answer = answer.map_err(|error| explain(&self.given_up, &error))?;
        if answer.status() != StatusCode::OK {
            return Err(SpiffeError::Stranger(answer.status()));
        }
        // An error without a message comes as headers alone.
        status(answer.headers()).map_or(Ok(()), Err)?;
        self.body = Some(answer.into_body());
        Ok(())
    }
}

/// The error in these headers, if there is one.
fn status(headers: &HeaderMap) -> Option<SpiffeError> {
    let status = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)?;
    Some(SpiffeError::Refused { code: status.code(), message: foreign_text(status.message(), MOST_TOLD) })
}

fn explain(given_up: &GivenUp, error: &hyper::Error) -> SpiffeError {
    let innermost = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source()).last();
    let cause = innermost.map_or_else(|| error.to_string(), ToString::to_string);
    given_up.reason().map_or(SpiffeError::Broken(cause), SpiffeError::Message)
}
