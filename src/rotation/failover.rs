use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    caller::{Caller, Request},
    failure::AttemptError,
    patience::LONGEST_REQUESTED_WAIT,
};
use crate::{
    ca::{CitadelClient, Way},
    clock,
    config::{CaAddress, CaConfig},
    identity::{Answer, SvidError},
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
    health: Health,
}

/// What is remembered of an address.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failed: Option<Instant>,
    /// Until when it asked to be left alone, as far as that can be borne.
    patience: Option<Instant>,
}

impl Failover {
    /// # Errors
    /// When an address cannot stand in a request.
    pub(super) fn new(config: &Arc<CaConfig>, status: &Status) -> Result<Self, http::Error> {
        let upstream = |address: &CaAddress| {
            let ca = CitadelClient::new(Arc::clone(config), address.clone())?;
            let endpoint = status.endpoint(&address.to_string());
            Ok(Upstream { caller: Caller::new(ca, endpoint), health: Health::default() })
        };
        let upstreams = config.addresses.iter().map(upstream).collect::<Result<_, http::Error>>()?;
        Ok(Self { upstreams, last: None })
    }

    /// Asks one address after the other until one answers with something that passes `verify`: one that gives another
    /// identity than asked for is of no more use than one that is down. Those that asked for patience are left out, but
    /// no longer than `bearable`, and unless all did: then how long to wait was the caller's decision.
    pub(super) async fn attempt<V>(
        &mut self,
        request: &Request<'_>,
        bearable: Duration,
        verify: impl Fn(Answer) -> Result<V, SvidError>,
    ) -> Result<V, AttemptError> {
        let (mut errors, mut unasked) = (Vec::new(), None);
        for index in order(self.upstreams.iter().map(|upstream| upstream.health).collect(), Instant::now()) {
            let upstream = &mut self.upstreams[index];
            let verified = match upstream.caller.attempt(request).await {
                Ok(answer) => verify(answer).map_err(AttemptError::Answer),
                Err(error) => Err(error),
            };
            match verified {
                Ok(verified) => {
                    upstream.health = Health::default();
                    // Unlike one that is down, it seems to work.
                    for (address, error) in errors.iter().filter(|(_, error)| matches!(error, AttemptError::Answer(_)))
                    {
                        warn!(%address, "{error}; another address has answered");
                    }
                    self.tell_change(index);
                    return Ok(verified);
                }
                // Where there is no TLS, a certificate cannot stand in for the token; elsewhere it may.
                Err(error @ AttemptError::Token(_)) => unasked = Some(error),
                Err(error) => {
                    let now = Instant::now();
                    let patience = error.class().retry_after.map(|asked| now + asked.min(bearable));
                    upstream.health = Health { failed: Some(now), patience };
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

    /// The ways to all of them as they are now.
    pub(super) fn ways(&self) -> Vec<Way> {
        self.upstreams.iter().map(|upstream| upstream.caller.way()).collect()
    }

    /// Until when each of them asked to be left alone, Unix seconds; 0 for those that did not.
    pub(super) fn patience(&self) -> impl Iterator<Item = i64> {
        let left = |upstream: &Upstream| upstream.health.patience?.checked_duration_since(Instant::now());
        let until = |left: Duration| clock::now().saturating_add(left.as_secs() as i64 + 1);
        self.upstreams.iter().map(move |upstream| left(upstream).map_or(0, until))
    }

    /// The same as it was before a crash.
    pub(super) fn still_patient(&mut self, until: &[i64]) {
        for (upstream, until) in self.upstreams.iter_mut().zip(until) {
            // The clock may have been set back meanwhile.
            let left =
                Duration::from_secs(until.saturating_sub(clock::now()).max(0) as u64).min(LONGEST_REQUESTED_WAIT);
            upstream.health.patience = Instant::now().checked_add(left).filter(|_| !left.is_zero());
        }
    }

    /// Asks all of them the next time, whatever they said.
    pub(super) fn forget_patience(&mut self) {
        self.upstreams.iter_mut().for_each(|upstream| upstream.health.patience = None);
    }

    fn tell_change(&mut self, index: usize) {
        let before = self.last.replace(index);
        let address = self.upstreams[index].caller.address();
        match before {
            Some(before) if before != index && index == 0 => {
                info!(%address, "CA failover: back on the preferred address")
            }
            None if index == 0 => {}
            Some(before) if before == index => {}
            _ => warn!(%address, "CA failover: the preferred address did not answer, another one did"),
        }
    }
}

/// Those that did not fail lately in the order of the configuration, then the others, the longest ago first.
fn order(upstreams: Vec<Health>, now: Instant) -> Vec<usize> {
    let failed =
        |index: &usize| upstreams[*index].failed.filter(|failed| now.saturating_duration_since(*failed) < AVOIDED_FOR);
    // They are a few: the library's way to sort them would be 4 KiB of code.
    let mut order: Vec<usize> = Vec::new();
    for index in 0..upstreams.len() {
        let place = order.iter().position(|before| failed(before) > failed(&index)).unwrap_or(order.len());
        order.insert(place, index);
    }
    let ready = |index: &usize| upstreams[*index].patience.is_none_or(|until| until <= now);
    match order.iter().any(ready) {
        true => order.into_iter().filter(ready).collect(),
        false => order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_addresses_go_last_and_retry_after_is_honoured() {
        /// The second at which an address failed, and the one until which it asked for patience.
        type Told = (Option<u64>, Option<u64>);
        const FINE: Told = (None, None);
        let rows: [(&[Told], u64, &[usize]); 11] = [
            (&[FINE, FINE, FINE], 1000, &[0, 1, 2]),
            (&[(Some(900), None), FINE, FINE], 1000, &[1, 2, 0]),
            (&[(Some(700), None), FINE, FINE], 999, &[1, 2, 0]),
            (&[(Some(700), None), FINE, FINE], 1000, &[0, 1, 2]),
            (&[(Some(950), None), (Some(900), None), FINE], 1000, &[2, 1, 0]),
            (&[(Some(900), Some(1100)), FINE, FINE], 1000, &[1, 2]),
            (&[(Some(900), Some(1100)), (Some(950), None)], 1000, &[1]),
            (&[(Some(900), Some(1100)), (Some(950), None)], 1100, &[0, 1]),
            (&[(Some(900), Some(1100)), (Some(950), None)], 1210, &[0, 1]),
            (&[(Some(950), Some(1100)), (Some(900), Some(1200))], 1000, &[1, 0]),
            (&[(Some(900), Some(1100))], 1000, &[0]),
        ];
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        for (upstreams, now, expected) in rows {
            let health = |(failed, patience): &Told| Health { failed: failed.map(at), patience: patience.map(at) };
            assert_eq!(order(upstreams.iter().map(health).collect(), at(now)), expected, "{upstreams:?} at {now}");
        }
    }
}
