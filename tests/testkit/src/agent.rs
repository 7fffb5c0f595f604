//! A SPIFFE Workload API as SPIRE's agent has one, which tells what a test wants.

use std::{
    convert::Infallible,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use development_ca::Issued;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::{pkey::PKey, x509::X509};
use prost::Message;
use sds_shim_proto::spiffe::{X509svid, X509svidResponse};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status};

use crate::{OrFail, Result, workload_api::HEADER};

const CALL: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// What every stream is told.
#[derive(Clone)]
pub enum Answer {
    /// Nothing yet.
    Silence,
    /// This, on streams that go on.
    Message(X509svidResponse),
    /// These bytes as the content of DATA frames, on streams that go on.
    Raw(Bytes),
    /// This, and the end in order.
    Last(X509svidResponse),
    /// The end with this error.
    Refusal(Code, &'static str),
}

/// A running server on a socket; it ends, with all its connections, when it is dropped, and takes the socket along.
pub struct Agent {
    socket: PathBuf,
    answer: watch::Sender<Answer>,
    calls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Serves this socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(socket: &Path, answer: Answer) -> Result<Self> {
        let listener = UnixListener::bind(socket).or_fail("bind the agent's socket")?;
        // Whoever asks is told, as by SPIRE's agent.
        std::fs::set_permissions(socket, Permissions::from_mode(0o777)).or_fail("open the agent's socket")?;
        let (answer, calls) = (watch::Sender::new(answer), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(accept(listener, answer.subscribe(), Arc::clone(&calls)));
        Ok(Self { socket: socket.to_owned(), answer, calls, task })
    }

    /// Tells all streams, and those to come, something else.
    pub fn tell(&self, answer: Answer) {
        self.answer.send_replace(answer);
    }

    /// How many calls have come.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// One identity with the anchors of its trust domain, all in PEM.
///
/// # Errors
/// When something cannot be read.
pub fn svid(issued: &Issued, id: &str, anchors: &str) -> Result<X509svid> {
    let key = PKey::private_key_from_pem(issued.key_pem.as_bytes()).or_fail("read a key")?;
    Ok(X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: der(&issued.chain_pem)?,
        x509_svid_key: key.private_key_to_pkcs8().or_fail("write a key")?.into(),
        bundle: der(anchors)?,
        hint: String::new(),
    })
}

/// A message with one identity.
pub fn message(svid: X509svid) -> X509svidResponse {
    X509svidResponse { svids: vec![svid], ..X509svidResponse::default() }
}

/// Certificates in DER, one after the other.
///
/// # Errors
/// When one cannot be read.
pub fn der(pem: &str) -> Result<Bytes> {
    let all = X509::stack_from_pem(pem.as_bytes()).or_fail("read certificates")?;
    let each: Result<Vec<_>> = all.iter().map(|one| one.to_der().or_fail("write a certificate")).collect();
    Ok(each?.concat().into())
}

/// A message with what stands before it.
pub fn framed(message: &[u8]) -> Bytes {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat().into()
}

async fn accept(listener: UnixListener, answer: watch::Receiver<Answer>, calls: Arc<AtomicUsize>) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, answer.clone(), Arc::clone(&calls)));
        while connections.try_join_next().is_some() {}
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn serve(stream: UnixStream, answer: watch::Receiver<Answer>, calls: Arc<AtomicUsize>) {
    let service = service_fn(move |request| {
        calls.fetch_add(1, Ordering::Relaxed);
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(&request, answer)) }
    });
    // How it ends is the client's business.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn respond(request: &Request<Incoming>, answer: watch::Receiver<Answer>) -> Response<Body> {
    let (frames, body) = mpsc::channel(1);
    let mut response = Response::new(BoxBody::new(StreamBody::new(ReceiverStream::new(body).map(Ok::<_, Infallible>))));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let refusal = match &*answer.borrow() {
        _ if request.uri().path() != CALL => Some((Code::Unimplemented, "another call")),
        _ if request.headers().get(HEADER.0).is_none_or(|value| value != HEADER.1) => {
            Some((Code::InvalidArgument, "security header missing from request"))
        }
        Answer::Refusal(code, text) => Some((*code, *text)),
        _ => None,
    };
    match refusal {
        // As servers do that have nothing to say: headers alone.
        Some((code, text)) => {
            let _ = Status::new(code, text).add_header(response.headers_mut());
        }
        None => drop(tokio::spawn(feed(answer, frames))),
    }
    response
}

async fn feed(mut answer: watch::Receiver<Answer>, frames: mpsc::Sender<Frame<Bytes>>) {
    loop {
        let now = answer.borrow_and_update().clone();
        let end = match now {
            Answer::Silence => None,
            Answer::Message(message) => {
                let _ = frames.send(Frame::data(framed(&message.encode_to_vec()))).await;
                None
            }
            Answer::Raw(bytes) => {
                let _ = frames.send(Frame::data(bytes)).await;
                None
            }
            Answer::Last(message) => {
                let _ = frames.send(Frame::data(framed(&message.encode_to_vec()))).await;
                Some(Status::ok(""))
            }
            Answer::Refusal(code, text) => Some(Status::new(code, text)),
        };
        if let Some(status) = end {
            let mut trailers = HeaderMap::new();
            let _ = status.add_header(&mut trailers);
            let _ = frames.send(Frame::trailers(trailers)).await;
            return;
        }
        tokio::select! {
            changed = answer.changed() => if changed.is_err() { return },
            () = frames.closed() => return,
        }
    }
}
