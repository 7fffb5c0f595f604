use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::ssl::{ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::{X509VerifyResult, store::X509StoreBuilder};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::AbortHandle,
};
use tokio_openssl::SslStream;

use super::{client_certificate::ClientCertificate, error::CaError};
use crate::{
    bounded,
    config::{CaConfig, CaRoots, ServerName},
    identity::TrustBundle,
};

/// Bytes of the file with the CA's trust anchors.
const MAX_ROOTS: usize = 1024 * 1024;
/// Receive windows: an answer is a few KiB, and nobody may make us hold much more.
const WINDOW: u32 = 64 * 1024;
/// Before an alert there can be no more than the server's first frames.
const READS_AFTER_A_FAILED_WRITE: usize = 64;

/// One HTTP/2 connection to the CA. It is made for one call and closed after it: the next one is hours away.
pub(super) struct Channel {
    sender: http2::SendRequest<tonic::body::Body>,
    connection: AbortHandle,
    alert: Alert,
}

/// The last TLS error that the connection met. With TLS 1.3 the refusal of a client certificate arrives only after
/// the handshake, where the HTTP layers would hide it.
#[derive(Clone, Default)]
struct Alert(Arc<Mutex<Option<String>>>);

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
            false => Box::new(tls(config, certificate, &address, alert.clone()).await?),
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
        self.alert.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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

impl Alert {
    fn explain(&self, presented: bool, error: &dyn std::fmt::Display) -> CaError {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(alert) if presented => CaError::ClientCertificateRefused(alert.clone()),
            Some(alert) => CaError::Transport(format!("TLS: {alert}")),
            None => CaError::Transport(error.to_string()),
        }
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

async fn tls(
    config: &CaConfig,
    certificate: Option<&ClientCertificate>,
    address: &str,
    alert: Alert,
) -> Result<Watched, CaError> {
    // Before the network: what is wrong with our own files should be told whatever the network does.
    let ssl = ssl(config, certificate)?;
    let mut stream = SslStream::new(ssl, tcp(config, address).await?)?;
    let Err(error) = Pin::new(&mut stream).connect().await else { return Ok(Watched { stream, alert }) };
    let verified = stream.ssl().verify_result();
    if certificate.is_some() && verified == X509VerifyResult::OK && is_alert(&error) {
        return Err(CaError::ClientCertificateRefused(error.to_string()));
    }
    let cause = match verified {
        X509VerifyResult::OK => error.to_string(),
        failed => format!("the server certificate is not accepted: {}", failed.error_string()),
    };
    Err(CaError::Tls { address: address.to_owned(), cause })
}

async fn tcp(config: &CaConfig, address: &str) -> Result<TcpStream, CaError> {
    let resolved = tokio::net::lookup_host((config.host.as_str(), config.port)).await;
    let addresses: Vec<SocketAddr> =
        resolved.map_err(|cause| CaError::Resolve { host: config.host.clone(), cause })?.collect();
    let connected = TcpStream::connect(&*addresses).await;
    let stream = connected.map_err(|cause| CaError::Connect { address: address.to_owned(), cause })?;
    // The last bytes of a request must not wait for an acknowledgement; without it the call is only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn ssl(config: &CaConfig, certificate: Option<&ClientCertificate>) -> Result<Ssl, CaError> {
    // Not SslConnector: its builder reads the system's whole trust store each time.
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_verify(SslVerifyMode::PEER);
    context.set_alpn_protos(b"\x02h2")?;
    trust(&mut context, &config.roots)?;
    if let Some(certificate) = certificate {
        context.set_certificate(&certificate.leaf)?;
        context.set_private_key(&certificate.key)?;
        for intermediate in &certificate.intermediates {
            context.add_extra_chain_cert(intermediate.clone())?;
        }
    }
    let mut ssl = Ssl::new(&context.build())?;
    match &config.server_name {
        ServerName::Dns(name) => {
            ssl.set_hostname(name)?;
            ssl.param_mut().set_host(name)?;
        }
        ServerName::Ip(address) => ssl.param_mut().set_ip(*address)?,
    }
    Ok(ssl)
}

fn trust(context: &mut SslContextBuilder, roots: &CaRoots) -> Result<(), CaError> {
    let file = match roots {
        CaRoots::System => return Ok(context.set_default_verify_paths()?),
        CaRoots::File(file) => file,
    };
    let problem = |cause: String| CaError::Roots { path: file.display().to_string(), cause };
    let content = bounded::read(file, MAX_ROOTS).map_err(|error| problem(error.to_string()))?;
    let bundle =
        TrustBundle::from_pem(&String::from_utf8_lossy(&content)).map_err(|error| problem(error.to_string()))?;
    let mut store = X509StoreBuilder::new()?;
    bundle.add_to(&mut store)?;
    context.set_cert_store(store.build());
    Ok(())
}

fn is_alert(error: &openssl::ssl::Error) -> bool {
    // The library's reasons 1000 and up are alerts that the peer sent (RFC 8446, section 6).
    error.code() == ErrorCode::SSL
        && error.ssl_error().is_some_and(|stack| stack.errors().iter().any(|error| error.reason_code() >= 1000))
}

/// A TLS stream that remembers the alert that ended it.
struct Watched {
    stream: SslStream<TcpStream>,
    alert: Alert,
}

impl Watched {
    fn note(&self, error: &io::Error) {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>())
            && is_alert(tls)
        {
            *self.alert.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tls.to_string());
        }
    }

    /// A write that meets the closed connection before the alert was read would hide it: HTTP/2 reads no more after a
    /// failed write, while the alert still lies in the receive queue.
    fn note_after_write<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.note(error);
            let mut discarded = [0; 1024];
            for _ in 0..READS_AFTER_A_FAILED_WRITE {
                let mut buf = ReadBuf::new(&mut discarded);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                    Poll::Ready(Err(error)) => {
                        self.note(&error);
                        break;
                    }
                    _ => break,
                }
            }
        }
        polled
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &polled {
            self.note(error);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_after_write(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_after_write(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note_after_write(cx, polled)
    }
}
