//! How long to wait after a failure. Pure: randomness is an argument.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const CAP: Duration = Duration::from_secs(30);

/// Exponential back-off with full jitter, so that those who failed together do not come back together.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: uniform up to a bound that doubles from 0.25 s to 30 s. `random` is uniform
    /// in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random)
    }

    /// Starts again at the shortest bound.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_again() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
        assert_eq!(Backoff::default().next(0.0), Duration::ZERO);
    }

    #[test]
    fn an_endless_outage_does_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.next(1.0), CAP);
    }
}
