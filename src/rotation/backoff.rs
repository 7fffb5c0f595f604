//! How long to wait after a failure. Pure: randomness is an argument.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
/// The longest wait, but for a CA that is asked too much or that has been away for long.
const CAP: Duration = Duration::from_secs(30);
/// The longest wait of all. A hundred thousand who wait so long for the same CA come back within what one CA can bear
/// (500 a second; `make fleet`).
const LONGEST: Duration = Duration::from_secs(300);
/// A sidecar has the certificate that it waits for within a quarter of the time that it has waited already.
const SHARE: u32 = 4;
/// The longest wait between two looks at a CA that nobody can connect to, and for how long that stays so. With it,
/// who has nothing valid has a certificate a second or two after the CA is back, up to half an hour after it went;
/// from then on a hundred thousand who wait for the same CA must not find it together.
const PROBE: Duration = Duration::from_secs(4);
const PROBED_FOR: Duration = Duration::from_secs(32 * 60);
const PROBE_SHARE: u32 = 2;

/// Bits for the milliseconds that were waited, and more failures than the longest bound takes.
const WAITED: u32 = 48;
const MOST_FAILURES: u64 = 16;

/// Exponential back-off with jitter, so that those who failed together do not come back together.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    waited: Duration,
}

impl Backoff {
    /// The wait after one more failure, uniform up to a bound that doubles from 0.25 s to 30 s; once a quarter of all
    /// waits so far is more, that is the bound, 5 min at the most, and two thirds of it are the least. `random` is
    /// uniform in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        self.next_within(Duration::MAX, random)
    }

    /// The same with a bound that is never above `most`.
    pub fn next_within(&mut self, most: Duration, random: f64) -> Duration {
        self.draw(CAP.max(self.waited / SHARE), most, random)
    }

    /// The same for a CA that has more to do than it can: the bound doubles to 5 min.
    pub fn next_for_strained(&mut self, most: Duration, random: f64) -> Duration {
        self.draw(LONGEST, most, random)
    }

    /// The wait before another look at a CA that nobody can connect to: between a quarter and the whole of a bound that
    /// doubles from 0.25 s to 4 s. After half an hour it grows to 5 min, by half of what is waited beyond. Whatever fails
    /// otherwise goes on from where it would have been without.
    pub fn next_probe(&mut self, random: f64) -> Duration {
        let beyond = self.waited.saturating_sub(PROBED_FOR) / PROBE_SHARE;
        let (least, bound) = match (PROBE + beyond).min(LONGEST) {
            PROBE => (self.bound().min(PROBE) / 4, self.bound().min(PROBE)),
            grown => (grown * 2 / 3, grown),
        };
        self.failures += u32::from(self.bound() < CAP);
        self.waits(least + (bound - least).mul_f64(random))
    }

    /// The next bound is so long at least, as far as there are such.
    pub fn at_least(&mut self, wait: Duration) {
        while self.bound() < wait.min(LONGEST) {
            self.failures += 1;
        }
    }

    /// So much of the last wait was not waited.
    pub fn cut_short(&mut self, unwaited: Duration) {
        self.waited = self.waited.saturating_sub(unwaited);
    }

    /// Starts again at the shortest bound.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Itself as a number, for a successor of the process.
    pub fn as_word(&self) -> u64 {
        u64::from(self.failures) << WAITED | (self.waited.as_millis() as u64).min((1 << WAITED) - 1)
    }

    /// What [`Backoff::as_word`] had.
    pub fn from_word(word: u64) -> Self {
        let waited = Duration::from_millis(word & ((1 << WAITED) - 1));
        Self { failures: (word >> WAITED).min(MOST_FAILURES) as u32, waited }
    }

    fn draw(&mut self, cap: Duration, most: Duration, random: f64) -> Duration {
        let cap = cap.min(LONGEST);
        let (grown, bound) = (self.bound(), self.bound().min(cap).min(most));
        // Full jitter spreads those who failed together as widely as can be. Where the bound is not the usual one any
        // more, they are spread, and short waits would only be more calls.
        let least = if grown > bound && bound != CAP { bound * 2 / 3 } else { Duration::ZERO };
        let wait = least + (bound - least).mul_f64(random);
        // It grows no further than it must: another kind of failure may have a longer bound.
        self.failures += u32::from(grown < cap);
        self.waits(wait)
    }

    fn waits(&mut self, wait: Duration) -> Duration {
        self.waited = self.waited.saturating_add(wait);
        wait
    }

    fn bound(&self) -> Duration {
        FIRST.saturating_mul(1 << self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens to a back-off.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Failure { strained: bool, random: f64, most: Duration },
        Overload(Duration),
        Success,
        Crash,
    }

    fn event() -> impl Strategy<Value = Event> {
        let seconds = |most: u64| (0..most).prop_map(Duration::from_secs);
        let failure = (prop::bool::ANY, 0.0..1.0, seconds(600));
        prop_oneof![
            8 => failure.prop_map(|(strained, random, most)| Event::Failure { strained, random, most }),
            1 => seconds(600).prop_map(Event::Overload),
            1 => Just(Event::Success),
            1 => Just(Event::Crash)
        ]
    }

    proptest! {
        #[test]
        fn each_wait_is_within_the_bound_of_its_failure(events in prop::collection::vec(event(), 1..100)) {
            let (mut backoff, mut grown, mut waited) = (Backoff::default(), FIRST, Duration::ZERO);
            for event in events {
                match event {
                    Event::Failure { strained, random, most } => {
                        let cap = if strained { LONGEST } else { CAP.max(waited / 4).min(LONGEST) };
                        let bound = grown.min(cap).min(most);
                        let wait = match strained {
                            true => backoff.next_for_strained(most, random),
                            false => backoff.next_within(most, random),
                        };
                        prop_assert!(wait <= bound && (grown <= bound || bound == CAP || wait >= bound * 2 / 3));
                        prop_assert!(wait.abs_diff(bound) <= bound.mul_f64(1.0 - random) + Duration::from_micros(1));
                        (grown, waited) = (if grown < cap { grown * 2 } else { grown }, waited + wait);
                    }
                    Event::Overload(least) => {
                        backoff.at_least(least);
                        while grown < least.min(LONGEST) {
                            grown *= 2;
                        }
                    }
                    Event::Success => {
                        backoff.reset();
                        (grown, waited) = (FIRST, Duration::ZERO);
                    }
                    Event::Crash => {
                        backoff = Backoff::from_word(backoff.as_word());
                        waited = Duration::from_millis(waited.as_millis() as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn doubles_up_to_the_cap_and_starts_again() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.next(0.0), Duration::ZERO, "the jitter is full");
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
        assert_eq!(Backoff::default().next(0.0), Duration::ZERO);
    }

    #[test]
    fn a_long_outage_makes_for_long_waits_that_are_a_part_of_it() {
        let (mut backoff, mut waited, mut calls) = (Backoff::default(), Duration::ZERO, 1);
        while waited < Duration::from_secs(3600) {
            let wait = backoff.next(0.5);
            assert!(wait <= (waited / 4).clamp(CAP, LONGEST), "{wait:?} after {waited:?}");
            (waited, calls) = (waited + wait, calls + 1);
        }
        assert!((30..=50).contains(&calls), "{calls} calls in an hour");
        assert_eq!((backoff.next(1.0), backoff.next(0.0)), (LONGEST, LONGEST * 2 / 3));
    }

    #[test]
    fn an_unreachable_ca_is_probed_every_few_seconds_for_half_an_hour() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..6).map(|_| backoff.next_probe(1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 4000]);
        let (mut waited, mut looks) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(30 * 60) {
            let wait = backoff.next_probe(0.5);
            assert!(wait <= PROBE, "{wait:?} after {waited:?}");
            (waited, looks) = (waited + wait, looks + 1);
        }
        assert!((700..=800).contains(&looks), "{looks} looks in half an hour");
        while waited < Duration::from_secs(3600) {
            waited += backoff.next_probe(0.5);
        }
        assert_eq!((backoff.next_probe(1.0), backoff.next_probe(0.0)), (LONGEST, LONGEST * 2 / 3));
        // Whoever is there and fails is left alone as if nobody had looked.
        assert_eq!(backoff.next_for_strained(Duration::MAX, 1.0), Duration::from_secs(32));
        assert_eq!(Backoff::default().next_probe(0.0), FIRST / 4);
    }

    #[test]
    fn a_strained_ca_is_left_alone_for_longer() {
        let mut backoff = Backoff::default();
        backoff.at_least(Duration::from_secs(30));
        assert_eq!(backoff.next_for_strained(Duration::MAX, 1.0), Duration::from_secs(32));
        backoff.at_least(Duration::from_secs(30));
        assert_eq!(backoff.next_for_strained(Duration::MAX, 1.0), Duration::from_secs(64), "it goes on from there");
        backoff.at_least(Duration::MAX);
        assert_eq!(backoff.next_for_strained(Duration::MAX, 0.0), LONGEST * 2 / 3);
        assert_eq!(backoff.next_for_strained(Duration::from_secs(12), 0.0), Duration::from_secs(8));
    }
}
