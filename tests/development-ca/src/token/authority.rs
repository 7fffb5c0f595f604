//! Who is believed about tokens: our own issuer, or a cluster's API server.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::issuer::TokenIssuer;
use super::verifier::TokenVerifier;
use crate::identity::Identity;
use crate::kubernetes::{Kubernetes, Method};
use crate::options::CaOptions;

/// Verifies tokens.
pub(crate) struct Authority {
    source: Source,
    audience: String,
}

enum Source {
    Issuer(TokenVerifier),
    Keys(Kubernetes, Mutex<Option<Fetched>>),
    Review(Kubernetes),
}

/// Keys of a cluster.
struct Fetched {
    verifier: TokenVerifier,
    at: Instant,
}

/// How long after a look at the cluster's keys a token with an unknown one, or of another issuer, is refused without
/// another look.
const SETTLED: Duration = Duration::from_secs(10);

impl Authority {
    pub(crate) fn new(tokens: &TokenIssuer, options: &CaOptions) -> serde_json::Result<Authority> {
        let CaOptions { audience, issuer, kubernetes, .. } = options;
        let source = match kubernetes.clone() {
            None => Source::Issuer(TokenVerifier::new(&tokens.jwks(), issuer, audience)?),
            Some(cluster) if cluster.method == Method::Jwks => Source::Keys(cluster, Mutex::default()),
            Some(cluster) => Source::Review(cluster),
        };
        Ok(Authority { source, audience: audience.clone() })
    }

    /// The identity in this trust domain that the token proves, or the reason why it proves none: for the record, not
    /// for the caller.
    pub(crate) async fn verify(&self, token: &str, trust_domain: &str) -> Result<Identity, String> {
        match &self.source {
            Source::Issuer(verifier) => verifier.verify(token, trust_domain),
            Source::Keys(cluster, fetched) => {
                let mut fetched = fetched.lock().await;
                let current = match fetched.take() {
                    Some(known) if known.verifier.knows_signer_of(token) || known.at.elapsed() < SETTLED => known,
                    // Keys are replaced now and then, an issuer gets another name with the same keys, and the first
                    // token is seen before any of them.
                    _ => self.fetch(cluster).await?,
                };
                fetched.insert(current).verifier.verify(token, trust_domain)
            }
            Source::Review(cluster) => {
                let user = cluster.review(token, &self.audience).await?;
                identity(&user, trust_domain).ok_or_else(|| format!("{user:?} is no service account"))
            }
        }
    }

    async fn fetch(&self, cluster: &Kubernetes) -> Result<Fetched, String> {
        let (issuer, keys) = (cluster.issuer().await?, cluster.keys().await?);
        let verifier = TokenVerifier::new(&keys, &issuer, &self.audience);
        let verifier = verifier.map_err(|error| format!("the API server's keys: {error}"))?;
        Ok(Fetched { verifier, at: Instant::now() })
    }
}

/// A service account is the user `system:serviceaccount:NAMESPACE:NAME`.
fn identity(user: &str, trust_domain: &str) -> Option<Identity> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Identity::new(trust_domain, namespace, name)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::pin::Pin;
    use std::sync::Arc;

    use openssl::ssl::Ssl;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_openssl::SslStream;

    use super::*;
    use crate::pki::{Leaf, Pki};
    use crate::token::TokenRequest;

    /// An API server that tells this issuer and these keys; its address, and files for who asks it.
    async fn api_server(issuer: &'static str, keys: String) -> Result<(String, PathBuf), Box<dyn std::error::Error>> {
        let pki = Pki::new("kubernetes");
        let issued = pki.issue(&Leaf::server(&["localhost"]));
        let mut context = openssl::ssl::SslContext::builder(openssl::ssl::SslMethod::tls_server())?;
        context.set_private_key(openssl::pkey::PKey::private_key_from_pem(issued.key_pem.as_bytes())?.as_ref())?;
        for (index, certificate) in openssl::x509::X509::stack_from_pem(issued.chain_pem.as_bytes())?.iter().enumerate()
        {
            match index {
                0 => context.set_certificate(certificate)?,
                _ => context.add_extra_chain_cert(certificate.clone())?,
            }
        }
        let context = context.build();
        let file = std::env::temp_dir().join(format!("development-ca-issuer-{}", std::process::id()));
        std::fs::write(&file, pki.root_pem())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = Ssl::new(&context).and_then(|ssl| SslStream::new(ssl, stream)) else { return };
                let mut request = [0; 4096];
                if Pin::new(&mut stream).accept().await.is_err() {
                    continue;
                }
                let size = stream.read(&mut request).await.unwrap_or(0);
                let body = match String::from_utf8_lossy(&request[..size]).contains("/openid/v1/jwks") {
                    true => keys.clone(),
                    false => json!({ "issuer": issuer }).to_string(),
                };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Ok((format!("https://localhost:{port}"), file))
    }

    #[tokio::test]
    async fn an_issuer_with_another_name_and_the_same_keys_is_asked_for() -> Result<(), Box<dyn std::error::Error>> {
        let tokens = Arc::new(TokenIssuer::new());
        let (api_server, file) = api_server("https://new.example.org", tokens.jwks()).await?;
        let token_file = PathBuf::from("/dev/null");
        let cluster = Kubernetes { method: Method::Jwks, api_server, ca_file: file.clone(), token_file };
        let fetched = Fetched {
            verifier: TokenVerifier::new(&tokens.jwks(), "https://old.example.org", "istio-ca")?,
            at: Instant::now().checked_sub(SETTLED).ok_or("this machine started just now")?,
        };
        let source = Source::Keys(cluster, Mutex::new(Some(fetched)));
        let authority = Authority { source, audience: "istio-ca".to_owned() };

        let of = |issuer: &str| {
            tokens.mint(&TokenRequest { issuer: issuer.to_owned(), ..TokenRequest::new("foo", "sleep") })
        };
        let identity = authority.verify(&of("https://new.example.org"), "cluster.local").await?;
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/foo/sa/sleep");
        let refused = authority.verify(&of("https://old.example.org"), "cluster.local").await;
        assert_eq!(refused.map(|identity| identity.to_string()), Err("wrong issuer".to_owned()));
        std::fs::remove_file(file)?;
        Ok(())
    }
}
