//! A client of our own making in front of a server's sidecar, which sees what the sidecar does with it.

use development_ca::Issued;
use openssl::ssl;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::mesh::Sidecar;
use crate::{Failure, OrFail, envoy::Admin, tls};

/// What the probe got back.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An HTTP answer with this status: the sidecar let the probe in.
    Answered(u16),
    /// No HTTP answer; in words, what came instead.
    Refused(String),
}

/// How the probe introduces itself.
pub(super) enum Introduction<'a> {
    /// HTTP without TLS.
    Plaintext,
    /// TLS with this client certificate.
    Tls(Option<&'a Issued>),
}

/// `GET /ip` at the sidecar's mutual-TLS port.
pub(super) async fn probe(
    server: &Sidecar,
    root_pem: &str,
    introduction: Introduction<'_>,
) -> Result<Outcome, Failure> {
    let stream = server.dial().await?;
    let Introduction::Tls(certificate) = introduction else {
        return exchange(stream).await;
    };
    // In TLS 1.3 the client's handshake is over before the server has looked at the client's certificate; in TLS 1.2
    // the refusal comes here.
    match tls::connect(stream, root_pem, certificate).await {
        Ok(stream) => exchange(stream).await,
        Err(failure) => Ok(Outcome::Refused(failure.what().to_owned())),
    }
}

/// A counter of the sidecar's mutual-TLS listener.
pub(super) async fn counter(admin: &Admin, name: &str) -> Result<u64, Failure> {
    let suffix = format!(".ssl.{name}");
    let counters = admin.stats(&suffix).await?.into_iter();
    let matching = counters.filter(|(name, _)| name.starts_with("listener.") && name.ends_with(&suffix));
    Ok(matching.map(|(_, value)| value).sum())
}

/// By hand, because an HTTP library keeps the TLS alert to itself when it comes before the request is out.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Outcome, Failure> {
    const REQUEST: &[u8] = b"GET /ip HTTP/1.1\r\nHost: httpbin\r\nConnection: close\r\n\r\n";
    // Fails when the refusal is here already, and the read tells which one.
    let _ = stream.write_all(REQUEST).await;
    let mut answer = Vec::new();
    let end = tokio::time::timeout(crate::PATIENCE, stream.read_to_end(&mut answer)).await;
    let end = end.or_fail("get the probe's connection closed")?;
    let text = String::from_utf8_lossy(&answer);
    if let Some(status) = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()) {
        return Ok(Outcome::Answered(status));
    }
    Ok(Outcome::Refused(match end {
        Ok(_) => "connection closed without an answer".to_owned(),
        // OpenSSL reads no alert after a write that met the closed connection.
        Err(error) => alert(&error).unwrap_or_else(|| "TLS connection closed without an answer".to_owned()),
    }))
}

/// The name of the TLS alert behind a failed read.
fn alert(error: &std::io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<ssl::Error>()?;
    Some(error.ssl_error()?.errors().first()?.reason()?.to_owned())
}
