#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use openssl::{
    error::ErrorStack,
    ssl::{ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslRef, SslVerifyMode, SslVersion},
    stack::StackRef,
    x509::{
        X509, X509VerifyResult,
        store::X509StoreBuilder,
        verify::{X509CheckFlags, X509VerifyFlags},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_openssl::SslStream;

use super::{
    client_certificate::ClientCertificate,
    dial::{Resolved, tcp},
    error::CaError,
};
use crate::{
    clock,
    config::{CaAddress, CaConfig, CaTls, ServerName, group_name},
    identity::{TrustBundle, may_have_issued},
    wire::MAX_BYTES,
};

/// Bytes of the certificate chain that the CA's server presents: a few KiB in the field. Before we know who it is, a
/// hundred bytes of it take some two KiB.
const MAX_CHAIN: u16 = 16 * 1024;
/// Bytes of one call before they are decrypted: records may be small, and there is a handshake.
const MAX_RAW: usize = 2 * MAX_BYTES;
/// Bytes that are taken from the kernel at once: a server's part of a handshake, or an answer. OpenSSL takes the header of
/// each record by itself, and its read-ahead begins after the handshake.
const AHEAD: usize = 4096;
/// The group that OpenSSL prefers since 3.5.
const HYBRID: &str = "X25519MLKEM768";
/// OpenSSL 4.0's own groups with a key share for the first alone (`SSL_CTX_set1_groups_list`): each further share is a key
/// made for nothing.
const HYBRID_SHARE: &str = "?*X25519MLKEM768:?SecP256r1MLKEM768 / ?X25519:?P-256 / ?X448:?P-384:?P-521 / \
                            ?ffdhe2048:?ffdhe3072";
/// What OpenSSL 4.0 has for its number, without the parts that come after the minor one.
const OF_VERSION: i64 = 0x400;
/// Whether OpenSSL is the one that the Makefile builds for us. Another one may have groups of its configuration's (`Groups` in
/// openssl.cnf), which no list of ours may widen.
const IS_OURS: bool = option_env!("OPENSSL_IS_OURS").is_some();

/// What fails when OpenSSL does, before anything is sent.
const SET_UP: &str = "cannot set up the TLS connection to the CA";

/// The last TLS error that the connection met. With TLS 1.3 the refusal of a client certificate arrives only after
/// the handshake, where the HTTP layers would hide it.
#[derive(Clone, Default)]
pub(super) struct Alert(Arc<Mutex<Option<String>>>);

impl Alert {
    pub(super) fn was_met(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What a broken call means: with a client certificate presented, an alert is its refusal.
    pub(super) fn explain(&self, presented: bool, error: &dyn std::fmt::Display) -> CaError {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(alert) if presented => CaError::ClientCertificateRefused(alert.clone()),
            Some(alert) => CaError::Transport(format!("TLS: {alert}")),
            None => CaError::Transport(error.to_string()),
        }
    }
}

/// Connects to the CA, verifies it, and presents `certificate` if there is one. `before` is what the last connection
/// there has come to.
///
/// # Errors
/// What kept the connection from being made.
pub(super) async fn connect(
    config: &CaConfig,
    address: &CaAddress,
    certificate: Option<&ClientCertificate>,
    before: Option<Negotiated>,
    alert: Alert,
    resolved: &Resolved,
) -> Result<Watched, CaError> {
    // Before the network: what is wrong with our own files should be told whatever the network does.
    let ssl = ssl(config, &address.server_name, certificate, before)?;
    let mut stream = SslStream::new(ssl, Tcp::new(tcp(address, config.timeout, resolved).await?))
        .map_err(CaError::openssl(SET_UP))?;
    let Err(error) = Pin::new(&mut stream).connect().await else { return Ok(Watched { stream, alert }) };
    if let Some(cause) = nothing_in_common(&config.tls, stream.ssl(), &error) {
        return Err(CaError::Tls { address: address.to_string(), cause });
    }
    let verified = stream.ssl().verify_result();
    if certificate.is_some() && verified == X509VerifyResult::OK && is_alert(&error) {
        return Err(CaError::ClientCertificateRefused(error.to_string()));
    }
    let cause = match verified {
        X509VerifyResult::OK if is_too_long(&error) => {
            format!("the server's certificate chain is larger than {} KiB", MAX_CHAIN / 1024)
        }
        X509VerifyResult::OK => error.to_string(),
        failed => format!("the server certificate was rejected: {}", failed.error_string()),
    };
    Err(CaError::Tls { address: address.to_string(), cause })
}

fn ssl(
    config: &CaConfig,
    server_name: &ServerName,
    certificate: Option<&ClientCertificate>,
    before: Option<Negotiated>,
) -> Result<Ssl, CaError> {
    let file = config.roots_file();
    // What is left out of it is told by whoever serves the file's anchors.
    TrustBundle::is_in_file(&file, clock::now())
        .map_err(|error| CaError::Roots { path: file.display().to_string(), cause: error.to_string() })?;
    context(&config.tls, certificate, before)
        .and_then(|mut context| {
            let mut store = X509StoreBuilder::new()?;
            locked::find_anchors(&mut context, Box::new(move |presented| anchors(&file, presented)))?;
            // As for an answer, and as Go and Envoy have it: whatever the file names is an anchor, also an intermediate.
            store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            context.set_cert_store(store.build());
            let mut ssl = Ssl::new(&context.build())?;
            // A server is named by its SANs alone (RFC 9525, section 2): a subject can say anything, and who is issued a
            // certificate with the CA's name as its common name must not get our token.
            ssl.param_mut().set_hostflags(X509CheckFlags::NEVER_CHECK_SUBJECT | X509CheckFlags::NO_PARTIAL_WILDCARDS);
            match server_name {
                ServerName::Dns(name) => {
                    ssl.set_hostname(name)?;
                    ssl.param_mut().set_host(name)?;
                }
                ServerName::Ip(address) => ssl.param_mut().set_ip(*address)?,
            }
            Ok(ssl)
        })
        .map_err(CaError::openssl(SET_UP))
}

fn context(
    tls: &CaTls,
    certificate: Option<&ClientCertificate>,
    before: Option<Negotiated>,
) -> Result<SslContextBuilder, ErrorStack> {
    // Not SslConnector: its builder reads the system's whole trust store each time.
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(if tls.only_1_3 { SslVersion::TLS1_3 } else { SslVersion::TLS1_2 }))?;
    if let Some(groups) = &tls.groups {
        context.set_groups_list(groups)?;
        // With TLS 1.2 a secret could be encrypted with the server's RSA key, in no group at all.
        context.set_cipher_list("DEFAULT:!kRSA")?;
    } else if has_known_groups() && before.is_some_and(|before| before.group == HYBRID) {
        // A server that has lost it asks for another share, which is a round trip. After any other group both shares are
        // sent as at first: a server that has got a post-quantum key exchange meanwhile is to use it.
        context.set_groups_list(HYBRID_SHARE)?;
    }
    context.set_verify(SslVerifyMode::PEER);
    context.set_alpn_protos(b"\x02h2")?;
    locked::limit_certificate_chain(&mut context, MAX_CHAIN);
    if let Some(certificate) = certificate {
        context.set_certificate(&certificate.leaf)?;
        context.set_private_key(&certificate.key)?;
        for intermediate in &certificate.intermediates {
            context.add_extra_chain_cert(intermediate.clone())?;
        }
    }
    Ok(context)
}

/// Whether the groups that OpenSSL takes by itself are those of [`HYBRID_SHARE`].
fn has_known_groups() -> bool {
    IS_OURS && openssl::version::number() >> 20 == OF_VERSION
}

/// Those of the file that may have issued one of these, or are one of them: parsed, hundreds would fill the arena.
fn anchors(file: &Path, presented: &StackRef<X509>) -> Vec<X509> {
    let presented: Vec<_> = presented.iter().collect();
    let mut found = Vec::new();
    // Where it cannot be read any more, the server is not accepted.
    let _ = TrustBundle::look_at_file(file, clock::now(), |anchor| {
        found.extend(may_have_issued(anchor, &presented).then(|| anchor.clone()));
    });
    found
}

/// What the server does not have of the TLS that the configuration wants, where that is why there is no connection.
fn nothing_in_common(tls: &CaTls, ssl: &SslRef, error: &openssl::ssl::Error) -> Option<String> {
    let mut reasons = error.ssl_error()?.errors().iter().map(openssl::error::Error::reason_code);
    let is_version = reasons.find_map(|reason| match reason {
        // SSL_R_UNSUPPORTED_PROTOCOL and SSL_R_WRONG_SSL_VERSION for what it answers, and its alert.
        258 | 266 | 1070 => Some(true),
        // Its alert handshake_failure.
        1040 => Some(false),
        _ => None,
    })?;
    if is_version {
        return tls.only_1_3.then(|| "the server does not support TLS 1.3 (SDS_SHIM_CA_TLS_MIN)".to_owned());
    }
    // Once the server has chosen, it is another reason.
    let groups = tls.groups.as_ref().filter(|_| ssl.current_cipher().is_none())?;
    Some(format!("no group in common (SDS_SHIM_CA_TLS_GROUPS={groups}): {error}"))
}

/// Whether the peer sent a longer handshake message than it may (`SSL_R_EXCESSIVE_MESSAGE_SIZE`).
fn is_too_long(error: &openssl::ssl::Error) -> bool {
    const EXCESSIVE_MESSAGE_SIZE: i32 = 152;
    error.ssl_error().is_some_and(|stack| stack.errors().iter().any(|one| one.reason_code() == EXCESSIVE_MESSAGE_SIZE))
}

fn is_alert(error: &openssl::ssl::Error) -> bool {
    // The library's reasons from 1000 on are alerts that the peer sent, a byte each (RFC 8446, section 6); far above
    // are those that all libraries have, such as a lack of memory.
    let alerts = 1000..1256;
    error.code() == ErrorCode::SSL
        && error.ssl_error().is_some_and(|stack| stack.errors().iter().any(|one| alerts.contains(&one.reason_code())))
}

/// What a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version of TLS, as OpenSSL writes it.
    pub version: &'static str,
    /// The group of the key exchange.
    pub group: &'static str,
}

/// A TLS stream that remembers the alert that ended it.
pub(super) struct Watched {
    stream: SslStream<Tcp>,
    alert: Alert,
}

impl Watched {
    /// What was negotiated.
    pub(super) fn negotiated(&self) -> Negotiated {
        let ssl = self.stream.ssl();
        Negotiated { version: ssl.version_str(), group: group_name(locked::negotiated_group(ssl)) }
    }

    fn note<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>())
            && is_alert(tls)
        {
            *self.alert.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tls.to_string());
        }
        polled
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note(polled)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note(polled)
    }
}

/// A socket on which a write that the peer will not take is lost in silence. OpenSSL reads no more after a failed
/// write, while the alert that says why the peer closed still lies in the receive queue; the reading side meets it,
/// or the end. It brings no more than a call may, so that no handshake goes on for ever.
struct Tcp {
    stream: BufReader<TcpStream>,
    bytes: usize,
}

impl Tcp {
    fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::with_capacity(AHEAD, stream), bytes: 0 }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bytes += buf.filled().len() - before;
        if self.bytes > MAX_RAW {
            return Poll::Ready(Err(io::Error::other("received more in one call than any answer takes")));
        }
        polled
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Poll::Ready(Ok(buf.len()))
            }
            polled => polled,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
