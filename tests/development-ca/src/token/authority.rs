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

/// How long after a look at the cluster's keys a token with an unknown one is refused without another look.
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
                    Some(known) if known.verifier.knows_key_of(token) || known.at.elapsed() < SETTLED => known,
                    // Keys are replaced now and then, and the first token is seen before any key.
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
