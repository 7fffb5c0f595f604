use std::{collections::BTreeMap, sync::Arc, time::Duration};

use development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest};

use crate::{Failure, OrFail};

/// What all workloads share: the PKI, the issuer of service-account tokens, and the CA.
pub struct World {
    /// What the CA signs with.
    pub pki: Arc<Pki>,
    /// Who the CA believes.
    pub tokens: Arc<TokenIssuer>,
    /// The CA.
    pub ca: DevelopmentCa,
    /// Tokens of another issuer, by `SERVICE_ACCOUNT.NAMESPACE`; who is not among these gets one of `tokens`.
    pub given: BTreeMap<String, String>,
}

impl World {
    /// Starts a CA that issues certificates of this lifetime.
    pub async fn start(lifetime: Duration) -> Result<Self, Failure> {
        Self::start_under("demo", lifetime).await
    }

    /// The same, with this common name of the CA's root.
    pub async fn start_under(root: &str, lifetime: Duration) -> Result<Self, Failure> {
        let world = Self::with(Pki::new(root), CaOptions::default()).await?;
        world.ca.set_ttl(Some(lifetime));
        Ok(world)
    }

    /// Starts a CA that signs with `pki`.
    pub async fn with(pki: Pki, options: CaOptions) -> Result<Self, Failure> {
        let (pki, tokens) = (Arc::new(pki), Arc::new(TokenIssuer::new()));
        let ca = DevelopmentCa::start(pki.clone(), tokens.clone(), options).await;
        Ok(Self { pki, tokens, ca: ca.or_fail("start the development CA")?, given: BTreeMap::new() })
    }

    /// A token of a workload.
    pub fn token(&self, namespace: &str, service_account: &str) -> String {
        let given = self.given.get(&format!("{service_account}.{namespace}")).cloned();
        given.unwrap_or_else(|| self.tokens.mint(&TokenRequest::new(namespace, service_account)))
    }

    /// Adds what the CA made of its calls: a caller is never told the true reason of a refusal.
    pub fn explain(&self, failure: Failure) -> Failure {
        let lines: Vec<_> = self.ca.calls().into_iter().map(|call| format!("{:?}", call.outcome)).collect();
        failure.with_log("the development CA", &lines)
    }
}
