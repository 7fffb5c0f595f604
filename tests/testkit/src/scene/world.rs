use std::{sync::Arc, time::Duration};

use development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer};

use crate::{Failure, OrFail};

/// What all workloads share: the PKI, the issuer of service-account tokens, and the CA.
pub struct World {
    /// What the CA signs with.
    pub pki: Arc<Pki>,
    /// Who the CA believes.
    pub tokens: Arc<TokenIssuer>,
    /// The CA.
    pub ca: DevelopmentCa,
}

impl World {
    /// Starts a CA that issues certificates of this lifetime.
    pub async fn start(lifetime: Duration) -> Result<Self, Failure> {
        Self::start_under("demo", lifetime).await
    }

    /// The same, with this common name of the CA's root.
    pub async fn start_under(root: &str, lifetime: Duration) -> Result<Self, Failure> {
        let pki = Arc::new(Pki::new(root));
        let tokens = Arc::new(TokenIssuer::new());
        let ca = DevelopmentCa::start(pki.clone(), tokens.clone(), CaOptions::default()).await;
        let ca = ca.or_fail("start the development CA")?;
        ca.set_ttl(Some(lifetime));
        Ok(Self { pki, tokens, ca })
    }

    /// Adds what the CA made of its calls: a caller is never told the true reason of a refusal.
    pub fn explain(&self, failure: Failure) -> Failure {
        let lines: Vec<_> = self.ca.calls().into_iter().map(|call| format!("{:?}", call.outcome)).collect();
        failure.with_log("the development CA", &lines)
    }
}
