use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, warn};

/// How long the same is not told again, and how many lines there are in this time.
const SILENCE: Duration = Duration::from_secs(600);
const LINES: usize = 16;

/// What was told of clients that were not let in: a line for each cause and address, and few of them.
#[derive(Default)]
pub(super) struct Refusals {
    told: Mutex<VecDeque<(u64, Instant)>>,
    hasher: RandomState,
}

impl Refusals {
    /// Tells why this one is not let in, unless that was told not long ago.
    pub(super) fn tell(&self, peer: IpAddr, why: &str) {
        let line = match self.take(peer, why, Instant::now()) {
            Some(LINES) => "; further refusals are logged at level debug for ten minutes",
            Some(_) => "",
            None => return debug!(client = %peer, "refused a client of SDS_SHIM_ADMIN_TLS: {why}"),
        };
        warn!(client = %peer, "refused a client of SDS_SHIM_ADMIN_TLS: {why}{line}");
    }

    /// Which line of the last while this is; none where there are enough.
    fn take(&self, peer: IpAddr, why: &str, now: Instant) -> Option<usize> {
        let what = self.hasher.hash_one((peer, why));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(_, at)| now.duration_since(*at) < SILENCE);
        if told.len() >= LINES || told.iter().any(|(known, _)| *known == what) {
            return None;
        }
        told.push_back((what, now));
        Some(told.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_logged_rarely_and_all_within_a_limit() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let from = |number: u8, why: &str, now| refusals.take(IpAddr::from([10, 0, 0, number]), why, now);
        assert_eq!(from(1, "no", start), Some(1));
        assert_eq!(from(1, "no", start), None);
        assert_eq!(from(1, "never", start), Some(2));
        let told = (2..100).filter(|number| from(*number, "no", start).is_some()).count();
        assert_eq!(told, LINES - 2);
        assert_eq!(from(1, "no", start + SILENCE), Some(1));
    }
}
