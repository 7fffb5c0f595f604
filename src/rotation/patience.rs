//! How long the CA is left alone after a failed call. Pure: the life that is left and randomness are arguments.

use std::time::Duration;

use super::backoff::Backoff;

/// How long a token that cannot be used is left alone when its file does not change: the clock may have been wrong.
const TOKEN_RECHECK: Duration = Duration::from_secs(30);
/// The longest wait that a CA may ask for.
pub(super) const LONGEST_REQUESTED_WAIT: Duration = Duration::from_secs(3600);
/// The least wait that a CA may ask for however little life is left.
const REQUESTED_WAIT: Duration = Duration::from_secs(30);
/// The first bound of the back-off from a CA that says that it is asked too much.
const OVERLOAD: Duration = Duration::from_secs(30);
/// The back-off's bound however little life is left.
const SHORT_WAIT: Duration = Duration::from_secs(2);

/// What a failure says of when to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// Nothing was asked: there is no token that could be used.
    Token,
    /// The CA could not be asked, or its answer was none.
    Failed {
        /// Whether the CA has more to do than it can.
        strain: Strain,
        /// How long it asks us to wait.
        asked: Option<Duration>,
    },
}

/// Whether the CA has more to do than it can, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strain {
    /// Nobody is there who could have any work: the connection was refused before it came about, or there is no way or
    /// no address. In Kubernetes that is the node itself, for a service without endpoints.
    Away,
    /// Nothing says so.
    None,
    /// It has not answered before the deadline. Its work on the call is lost, so it must not get more of the same for
    /// ever: in a queue that is longer than the deadline nobody would be answered any more.
    Late,
    /// It says so.
    Overload,
}

/// How long to wait after a failure. `left` is the life that is left of the certificate that is held, zero after its
/// end; `None` while none is held. `random` is uniform in 0..1.
pub fn wait_after(setback: Setback, left: Option<Duration>, backoff: &mut Backoff, random: f64) -> Duration {
    let Setback::Failed { strain, asked } = setback else { return TOKEN_RECHECK };
    if is_probed(setback, left) {
        return backoff.next_probe(random);
    }
    // Nor may a CA that asks for patience make the certificate lapse.
    let asked = asked.map(|asked| asked.min(bearable(left)));
    // All who were told the same must not come back together: they spread over as long again.
    backoff.at_least(asked.unwrap_or(if strain == Strain::Overload { OVERLOAD } else { Duration::ZERO }));
    let asked = asked.unwrap_or_default();
    // A short certificate must not lapse in a wait between two attempts.
    let most = match left {
        Some(left) if !left.is_zero() => (left.saturating_sub(asked) / 2).max(SHORT_WAIT),
        _ => Duration::MAX,
    };
    asked
        + match strain {
            Strain::Away | Strain::None if asked.is_zero() => backoff.next_within(most, random),
            _ => backoff.next_for_strained(most, random),
        }
}

/// Whether the CA is looked for every few seconds: that costs it nothing, and there is nothing valid to serve.
pub(super) fn is_probed(setback: Setback, left: Option<Duration>) -> bool {
    setback == Setback::Failed { strain: Strain::Away, asked: None } && left.is_none_or(|left| left.is_zero())
}

/// How long an answer is waited for, of the `most` that the configuration allows: while what is held is valid, another
/// attempt must be possible before it ends; but who could not be reached in less than `reach` is not slow in answering.
pub(super) fn answer_within(most: Duration, reach: Duration, left: Option<Duration>) -> Duration {
    match left {
        Some(left) if !left.is_zero() => most.min((left / 2).max(reach)),
        _ => most,
    }
}

/// The longest wait that a CA may ask for now; `left` as in [`wait_after`].
pub fn bearable(left: Option<Duration>) -> Duration {
    match left {
        Some(left) => (left / 2).max(REQUESTED_WAIT).min(LONGEST_REQUESTED_WAIT),
        None => LONGEST_REQUESTED_WAIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Setback = Setback::Failed { strain: Strain::None, asked: None };
    const OVERLOADED: Setback = Setback::Failed { strain: Strain::Overload, asked: None };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn asked(asked: u64) -> Setback {
        Setback::Failed { strain: Strain::Overload, asked: Some(seconds(asked)) }
    }

    #[test]
    fn each_failure_has_its_first_wait() {
        let late = Setback::Failed { strain: Strain::Late, asked: None };
        let day = Some(seconds(86_400));
        let away = Setback::Failed { strain: Strain::Away, asked: None };
        let rows: [(Setback, Option<Duration>, [u64; 2]); 17] = [
            (Setback::Token, day, [30_000, 30_000]),
            (away, day, [0, 250]),
            (away, Some(seconds(0)), [62, 250]),
            (away, None, [62, 250]),
            (NONE, day, [0, 250]),
            (late, day, [0, 250]),
            (OVERLOADED, day, [0, 32_000]),
            (OVERLOADED, None, [0, 32_000]),
            // It must not lapse in the wait; nor may it be asked all the time.
            (OVERLOADED, Some(seconds(20)), [6666, 10_000]),
            (OVERLOADED, Some(seconds(1)), [1333, 2000]),
            (OVERLOADED, Some(seconds(0)), [0, 32_000]),
            // What is asked for is waited for, and the spread comes on top.
            (asked(2), None, [2000, 4000]),
            (asked(60), day, [60_000, 124_000]),
            (asked(999_999), None, [3_800_000, 3_900_000]),
            // Half of the life is what a CA may ask for, but half a minute always.
            (asked(600), Some(seconds(200)), [133_333, 150_000]),
            (asked(600), Some(seconds(40)), [33_333, 35_000]),
            (asked(600), Some(seconds(1)), [31_333, 32_000]),
        ];
        for (setback, left, [shortest, longest]) in rows {
            let wait = |random| wait_after(setback, left, &mut Backoff::default(), random).as_millis() as u64;
            assert_eq!([wait(0.0), wait(1.0)], [shortest, longest], "{setback:?} with {left:?} left");
        }
    }

    #[test]
    fn a_slow_ca_is_called_less_often_than_an_unreachable_one() {
        let longest = |strain| {
            let mut backoff = Backoff::default();
            let setback = Setback::Failed { strain, asked: None };
            (0..12).map(|_| wait_after(setback, None, &mut backoff, 0.5)).max()
        };
        assert_eq!([longest(Strain::None), longest(Strain::Late)], [Some(seconds(15)), Some(seconds(250))]);
    }

    #[test]
    fn an_answer_is_waited_for_as_long_as_what_is_held_allows() {
        let rows = [(None, 60), (Some(0), 60), (Some(86_400), 60), (Some(80), 40), (Some(20), 10), (Some(3), 10)];
        for (left, expected) in rows {
            let within = answer_within(seconds(60), seconds(10), left.map(seconds));
            assert_eq!(within, seconds(expected), "{left:?}");
        }
        assert_eq!(answer_within(seconds(5), seconds(10), Some(seconds(80))), seconds(5));
    }

    #[test]
    fn without_a_valid_certificate_an_unreachable_ca_is_probed_every_few_seconds() {
        let longest = |strain, left| {
            let (mut backoff, setback) = (Backoff::default(), Setback::Failed { strain, asked: None });
            (0..200).map(|_| wait_after(setback, left, &mut backoff, 1.0)).max()
        };
        for left in [None, Some(seconds(0))] {
            assert_eq!(longest(Strain::Away, left), Some(seconds(4)), "{left:?}");
            assert_eq!(longest(Strain::None, left), Some(seconds(300)), "{left:?}");
        }
        assert_eq!(longest(Strain::Away, Some(seconds(86_400))), Some(seconds(300)), "there is no hurry");
    }

    /// From half of a day's life on without an answer: the attempts go on to the end, and always leave time for another.
    #[test]
    fn an_outage_costs_few_calls_and_the_last_ones_come_before_the_end() {
        let (mut backoff, mut left, mut calls, mut last) = (Backoff::default(), seconds(12 * 3600), 0, 0.0);
        while !left.is_zero() {
            let wait = wait_after(NONE, Some(left), &mut backoff, 0.5);
            (calls, last) = (calls + 1, left.as_secs_f64());
            left = left.saturating_sub(wait);
        }
        assert!((12 * 14..12 * 25).contains(&calls), "{calls} calls in 12 h");
        assert!(last <= 2.0, "the last {last} s before the end");
    }
}
