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
        self.next_within(CAP, random)
    }

    /// The same with a bound that is never above `most`.
    pub fn next_within(&mut self, most: Duration, random: f64) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(CAP).min(most);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random)
    }

    /// Whoever is asked says that it is too much: the next bound is the longest.
    pub fn exhaust(&mut self) {
        self.failures = u32::MAX;
    }

    /// Starts again at the shortest bound.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens to a back-off.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Failure(f64, Duration),
        Overload,
        Success,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![8 => (0.0..1.0, 0_u64..60).prop_map(|(random, most)| Event::Failure(random, Duration::from_secs(most))), 1 => Just(Event::Overload), 1 => Just(Event::Success)]
    }

    proptest! {
        #[test]
        fn each_wait_is_within_the_bound_of_its_failure(events in prop::collection::vec(event(), 1..100)) {
            let (mut backoff, mut bound) = (Backoff::default(), FIRST);
            for event in events {
                match event {
                    Event::Failure(random, most) => {
                        let wait = backoff.next_within(most, random);
                        let uniform = bound.min(most).mul_f64(random);
                        prop_assert!(wait <= CAP && wait.abs_diff(uniform) < Duration::from_micros(1));
                        bound = (bound * 2).min(CAP);
                    }
                    Event::Overload => {
                        backoff.exhaust();
                        bound = CAP;
                    }
                    Event::Success => {
                        backoff.reset();
                        bound = FIRST;
                    }
                }
            }
        }
    }

    #[test]
    fn doubles_up_to_the_cap_and_starts_again() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
        backoff.exhaust();
        assert_eq!(backoff.next(1.0), CAP);
        assert_eq!(Backoff::default().next(0.0), Duration::ZERO);
    }

    #[test]
    fn an_endless_outage_does_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.next(1.0), CAP);
    }
}
