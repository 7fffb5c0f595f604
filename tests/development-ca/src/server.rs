//! The listener, its connections, and the handle that tests hold.

mod faults;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Response;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use openssl::ssl::SslRef;
use sds_shim_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_openssl::SslStream;
use tonic::body::Body;

use crate::fault::{Fault, PlainAnswer};
use crate::flood::flood;
use crate::identity::Identity;
use crate::options::{CaOptions, ClientCertificates};
use crate::pki::Pki;
use crate::record::{Call, Peer, Record};
use crate::service::{Citadel, ClientCertificate, serial};
use crate::tls::TlsServer;
use crate::token::{Authority, TokenIssuer};
use faults::Faults;

/// A running CA: a task on the caller's runtime, which must go on being driven. It stops, and its connections close,
/// when this is dropped.
pub struct DevelopmentCa {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// What the handle and all connections see.
pub(crate) struct Shared {
    pub(crate) options: CaOptions,
    pub(crate) pki: Arc<Pki>,
    pub(crate) authority: Authority,
    pub(crate) record: watch::Sender<Record>,
    pub(crate) faults: Faults,
    tls: TlsServer,
    policy: Mutex<Policy>,
    /// A change closes every connection that is open at that time.
    disconnect: watch::Sender<u64>,
}

/// What can change while the CA runs.
#[derive(Clone)]
struct Policy {
    client_certificates: ClientCertificates,
    ttl: Option<Duration>,
    extra_roots: Vec<String>,
    /// At least one.
    trust_domains: Vec<String>,
}

impl DevelopmentCa {
    /// Binds `options.listen` and serves until the handle is dropped.
    pub async fn start(pki: Arc<Pki>, tokens: Arc<TokenIssuer>, options: CaOptions) -> io::Result<DevelopmentCa> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            authority: Authority::new(&tokens, &options)?,
            tls: TlsServer::new(&options, &pki).map_err(io::Error::other)?,
            policy: Mutex::new(Policy {
                client_certificates: options.client_certificates,
                ttl: None,
                extra_roots: options.extra_roots.clone(),
                trust_domains: vec![options.trust_domain.clone()],
            }),
            record: watch::Sender::default(),
            faults: Faults::default(),
            disconnect: watch::Sender::default(),
            pki,
            options,
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(DevelopmentCa { shared, address, accepting })
    }

    /// Where it listens; `CA_ADDR=localhost:PORT` with the default server names.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The root that the server's certificate chains to.
    pub fn root_pem(&self) -> String {
        self.shared.options.server_pki.as_ref().unwrap_or(&self.shared.pki).root_pem()
    }

    /// Every `CreateCertificate` that arrived, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.record.borrow().calls.clone()
    }

    /// How many TCP connections were accepted, those that failed in the handshake included.
    pub fn connections(&self) -> usize {
        self.shared.record.borrow().connections
    }

    /// Returns once `n` calls have arrived since the start.
    pub async fn wait_for_calls(&self, n: usize) {
        self.wait(|record| record.calls.len() >= n).await;
    }

    /// Returns once `n` calls have an outcome other than [`Outcome::Pending`](crate::Outcome::Pending).
    pub async fn wait_for_outcomes(&self, n: usize) {
        self.wait(|record| record.finished() >= n).await;
    }

    /// Returns once `n` connections have been accepted since the start.
    pub async fn wait_for_connections(&self, n: usize) {
        self.wait(|record| record.connections >= n).await;
    }

    /// Applies to all later calls, after the queue of [`DevelopmentCa::push_fault`], until changed.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.faults.set(fault);
    }

    /// Applies to the next call (or handshake or connection, by its kind) only; several form a queue.
    pub fn push_fault(&self, fault: Fault) {
        self.shared.faults.push(fault);
    }

    /// Applies to later handshakes.
    pub fn set_client_certificates(&self, mode: ClientCertificates) {
        self.shared.change(|policy| policy.client_certificates = mode);
    }

    /// Issues this lifetime, counted from now, whatever was asked.
    pub fn set_ttl(&self, ttl: Option<Duration>) {
        self.shared.change(|policy| policy.ttl = ttl);
    }

    /// Replaces the roots (PEM) that follow the signing one in the answer.
    pub fn set_extra_roots(&self, roots: Vec<String>) {
        self.shared.change(|policy| policy.extra_roots = roots);
    }

    /// Issues in these trust domains: in the one that the CSR asks for, where it is among them, else in the first.
    pub fn set_trust_domains(&self, domains: &[&str]) {
        self.shared.change(|policy| policy.trust_domains = domains.iter().map(ToString::to_string).collect());
    }

    /// Closes every open connection; new ones are accepted.
    pub fn disconnect(&self) {
        self.shared.disconnect.send_modify(|generation| *generation += 1);
    }

    /// Stops, and returns once the port is free and the connections are closed; a drop does the same in its own time.
    pub async fn stop(mut self) {
        self.accepting.abort();
        // The error says that the task was aborted, which is what is awaited.
        let _aborted = (&mut self.accepting).await;
    }

    async fn wait(&self, reached: impl FnMut(&Record) -> bool) {
        let mut record = self.shared.record.subscribe();
        // The sender lives in `self.shared`, so the wait cannot end early.
        drop(record.wait_for(reached).await);
    }
}

impl Drop for DevelopmentCa {
    fn drop(&mut self) {
        // The task owns the set of connection tasks, so they end with it.
        self.accepting.abort();
    }
}

impl Shared {
    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.policy().ttl
    }

    pub(crate) fn extra_roots(&self) -> Vec<String> {
        self.policy().extra_roots
    }

    /// The trust domain in which a certificate is issued to who asks for `asked`.
    pub(crate) fn trust_domain(&self, asked: Option<&str>) -> String {
        let domains = self.policy().trust_domains;
        let found = domains.iter().find(|domain| asked == Some(domain)).or(domains.first());
        found.cloned().unwrap_or_default()
    }

    fn policy(&self) -> Policy {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, edit: impl FnOnce(&mut Policy)) {
        edit(&mut self.policy.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error here is the peer's (reset before accept) or passes (descriptors run out).
                let Ok((stream, _)) = accepted else { continue };
                shared.record.send_modify(|record| record.connections += 1);
                if !shared.faults.take_drop() {
                    connections.spawn(connection(stream, shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let mut disconnected = shared.disconnect.subscribe();
    tokio::select! {
        () = handshake_and_serve(stream, shared) => {}
        _ = disconnected.changed() => {}
    }
}

async fn handshake_and_serve(stream: TcpStream, shared: Arc<Shared>) {
    // Small frames both ways: waiting for more to send would only add delay.
    let _best_effort = stream.set_nodelay(true);
    if shared.options.plaintext {
        return serve(stream, None, shared).await;
    }
    let faults = shared.clone();
    let session = shared.tls.session(shared.policy().client_certificates, move || faults.faults.take_refusal());
    let Ok(mut stream) = session.and_then(|session| SslStream::new(session, stream)) else { return };
    // A failed handshake has been answered with an alert; the peer is who has to say so.
    if Pin::new(&mut stream).accept().await.is_ok() {
        let client = client_certificate(stream.ssl(), &shared);
        serve(stream, client, shared).await;
    }
}

async fn serve<S>(stream: S, client: Option<ClientCertificate>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Some(kind) = shared.faults.take_flood() {
        // It ends when the client goes away.
        let _ended = flood(stream, kind).await;
        return;
    }
    let close = Arc::new(Notify::new());
    let instead = Arc::new(Mutex::new(None));
    let citadel = Citadel { shared, client, close: close.clone(), instead: instead.clone() };
    let service = TowerToHyperService::new(IstioCertificateServiceServer::new(citadel));
    let service = service_fn(move |request| {
        let (answer, instead) = (service.call(request), instead.clone());
        async move {
            let answer = answer.await?;
            let plain = instead.lock().unwrap_or_else(PoisonError::into_inner).take();
            Ok::<_, Infallible>(plain.map_or(answer, without_grpc))
        }
    });
    let http = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error ends this one connection and is the client's to notice.
        _ended = http => {}
        () = close.notified() => {}
    }
}

fn without_grpc(PlainAnswer { status, headers, body }: PlainAnswer) -> Response<Body> {
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let answer = headers.fold(Response::builder().status(status), |answer, (name, value)| answer.header(name, value));
    answer.body(Body::new(body)).expect("a scripted answer is well-formed")
}

fn client_certificate(ssl: &SslRef, shared: &Shared) -> Option<ClientCertificate> {
    let certificate = ssl.peer_certificate()?;
    let domains = shared.policy().trust_domains;
    let identity = domains.iter().find_map(|domain| Identity::from_certificate(&certificate, domain));
    let spiffe_id = identity.as_ref().map(Identity::to_string);
    Some(ClientCertificate { peer: Peer { spiffe_id, serial: serial(&certificate) }, identity })
}
