use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::caller::{AttemptError, Caller};
use crate::{
    ca::{CitadelClient, ClientCertificate},
    config::{CaAddress, CaConfig},
    identity::{BearerToken, TokenError, X509Svid},
    status::Status,
};

/// How long an address that failed comes after those that did not.
const AVOIDED_FOR: Duration = Duration::from_secs(300);

/// The CA at its addresses, in the order of preference, with a memory of which of them failed lately.
pub(super) struct Failover {
    upstreams: Vec<Upstream>,
    /// The one that answered last.
    last: Option<usize>,
}

struct Upstream {
    caller: Caller,
    failed: Option<Instant>,
    /// Until when it asked to be left alone.
    patience: Option<Instant>,
}

/// The CA's answer, and which address it came from.
pub(super) struct Answer {
    pub(super) chain: Vec<String>,
    pub(super) from: usize,
}

impl Failover {
    /// # Errors
    /// When an address cannot stand in a request.
    pub(super) fn new(config: &Arc<CaConfig>, status: &Status) -> Result<Self, http::Error> {
        let upstream = |address: &CaAddress| {
            let ca = CitadelClient::new(Arc::clone(config), address.clone())?;
            let endpoint = status.endpoint(&address.to_string());
            Ok(Upstream { caller: Caller::new(ca, endpoint), failed: None, patience: None })
        };
        let upstreams = config.addresses.iter().map(upstream).collect::<Result<_, http::Error>>()?;
        Ok(Self { upstreams, last: None })
    }

    /// Asks one address after the other until one answers. Those that asked for patience are left out, unless all did:
    /// then how long to wait was the caller's decision.
    pub(super) async fn attempt(
        &mut self,
        csr_pem: &str,
        token: Result<&BearerToken, TokenError>,
        own: Option<&X509Svid>,
    ) -> Result<Answer, AttemptError> {
        let (mut errors, mut unasked) = (Vec::new(), None);
        for index in self.order(Instant::now()) {
            let upstream = &mut self.upstreams[index];
            match upstream.caller.attempt(csr_pem, token.clone(), own.map(ClientCertificate::own)).await {
                Ok(chain) => {
                    (upstream.failed, upstream.patience) = (None, None);
                    self.tell_change(index);
                    return Ok(Answer { chain, from: index });
                }
                // Where there is no TLS, a certificate cannot stand in for the token; elsewhere it may.
                Err(error @ AttemptError::Token(_)) => unasked = Some(error),
                Err(error) => {
                    let now = Instant::now();
                    upstream.failed = Some(now);
                    upstream.patience = error.retry_after().and_then(|asked| now.checked_add(asked));
                    errors.push((upstream.caller.address().clone(), error));
                }
            }
        }
        Err(match (errors.len(), unasked) {
            (0, Some(error)) => error,
            (1, _) => errors.remove(0).1,
            _ => AttemptError::Everywhere(errors),
        })
    }

    /// Asks all of them the next time, whatever they said.
    pub(super) fn forget_patience(&mut self) {
        self.upstreams.iter_mut().for_each(|upstream| upstream.patience = None);
    }

    /// The answer that came from there was of no use: the others are asked first for a while.
    pub(super) fn distrust(&mut self, index: usize) {
        self.upstreams[index].failed = Some(Instant::now());
    }

    /// Those that did not fail lately in the order of the configuration, then the others, the longest ago first.
    fn order(&self, now: Instant) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.upstreams.len()).collect();
        let failed = |index: &usize| {
            self.upstreams[*index].failed.filter(|failed| now.saturating_duration_since(*failed) < AVOIDED_FOR)
        };
        order.sort_by_key(failed);
        let ready = |index: &usize| self.upstreams[*index].patience.is_none_or(|until| until <= now);
        match order.iter().any(ready) {
            true => order.into_iter().filter(ready).collect(),
            false => order,
        }
    }

    fn tell_change(&mut self, index: usize) {
        let before = self.last.replace(index);
        let address = self.upstreams[index].caller.address();
        match before {
            Some(before) if before != index && index == 0 => {
                info!(%address, "the CA is asked at its first address again")
            }
            None if index == 0 => {}
            Some(before) if before == index => {}
            _ => warn!(%address, "the CA answers at another address than the first"),
        }
    }
}
