//! The CA as a queue: one call after the other, so many a second, each answered some time after its turn.

use std::time::Duration;

use crate::time::{Micros, SECOND, seconds};

/// How the CA is from a moment on.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    /// It issues.
    Up {
        /// How many it can issue each second.
        per_second: u64,
        /// What an answer takes beside the queue.
        latency: Micros,
    },
    /// Every call is answered at once with `UNAVAILABLE`, and what was queued is lost.
    Down,
    /// Connections are refused, which is no work for it, and what was queued is lost.
    Away,
}

/// What it does with calls that it cannot issue at once.
#[derive(Clone, Copy, Debug)]
pub enum Queue {
    /// They wait, however many there are; those that their clients have given up are worked on as well.
    Endless,
    /// So many wait. The others are answered at once with `RESOURCE_EXHAUSTED`, and asked to wait where it says so.
    UpTo {
        /// Calls.
        calls: u64,
        /// `RetryInfo`.
        asked: Option<Duration>,
    },
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A certificate that ends then, in seconds of virtual time.
    Issued {
        /// NotAfter.
        not_after: i64,
    },
    /// `UNAVAILABLE`, or a connection that breaks.
    Unavailable,
    /// There was no connection, and the CA knows of nothing.
    Refused,
    /// `RESOURCE_EXHAUSTED`.
    Overload {
        /// `RetryInfo`.
        asked: Option<Duration>,
    },
    /// Nothing before the client's own deadline.
    Deadline,
}

/// The CA of a simulation.
#[derive(Clone, Debug)]
pub struct Ca {
    conditions: Vec<(Micros, Condition)>,
    queue: Queue,
    life: i64,
    /// Which of the conditions the last call met.
    current: usize,
    /// When the last of the queued calls has had its turn.
    free: Micros,
}

impl Ca {
    /// A CA whose condition changes at the given moments, the first of which is 0, and which issues for `life` seconds.
    pub fn new(conditions: Vec<(Micros, Condition)>, queue: Queue, life: i64) -> Self {
        Self { conditions, queue, life, current: 0, free: 0 }
    }

    /// The same for a fleet that is smaller by this factor.
    #[must_use]
    pub fn scaled(&self, by: u64) -> Self {
        let mut scaled = self.clone();
        for (_, condition) in &mut scaled.conditions {
            if let Condition::Up { per_second, .. } = condition {
                *per_second = (*per_second / by).max(1);
            }
        }
        if let Queue::UpTo { calls, .. } = &mut scaled.queue {
            *calls = (*calls / by).max(1);
        }
        scaled
    }

    /// One call, and when it is answered with what. Calls come in the order of time.
    pub fn call(&mut self, at: Micros, deadline: Option<Micros>) -> (Micros, Answer) {
        while self.conditions.get(self.current + 1).is_some_and(|(from, _)| *from <= at) {
            self.current += 1;
            if !matches!(self.conditions[self.current].1, Condition::Up { .. }) {
                self.free = 0;
            }
        }
        let (per_second, latency) = match self.conditions[self.current].1 {
            Condition::Up { per_second, latency } => (per_second, latency),
            Condition::Down => return (at + SECOND / 1000, Answer::Unavailable),
            Condition::Away => return (at + SECOND / 1000, Answer::Refused),
        };
        let waiting = self.free.saturating_sub(at) * per_second / SECOND;
        if let Queue::UpTo { calls, asked } = self.queue
            && waiting >= calls
        {
            return (at + latency, Answer::Overload { asked });
        }
        self.free = self.free.max(at) + SECOND / per_second;
        let answered = self.free + latency;
        let limit = deadline.map_or(Micros::MAX, |deadline| at.saturating_add(deadline));
        match self.next_outage() {
            Some(outage) if outage < answered.min(limit) => (outage, Answer::Unavailable),
            _ if limit < answered => (limit, Answer::Deadline),
            _ => (answered, Answer::Issued { not_after: seconds(answered) + self.life }),
        }
    }

    fn next_outage(&self) -> Option<Micros> {
        let later = self.conditions.get(self.current + 1..)?;
        later.iter().find(|(_, condition)| !matches!(condition, Condition::Up { .. })).map(|(from, _)| *from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Condition = Condition::Up { per_second: 10, latency: SECOND / 100 };

    fn issued(at: Micros) -> (Micros, Answer) {
        (at, Answer::Issued { not_after: seconds(at) + 60 })
    }

    #[test]
    fn one_call_after_the_other_is_issued_and_those_that_find_no_room_are_refused() {
        let mut ca = Ca::new(vec![(0, UP)], Queue::UpTo { calls: 2, asked: None }, 60);
        assert_eq!(ca.call(0, None), issued(110_000));
        assert_eq!(ca.call(0, None), issued(210_000));
        assert_eq!(ca.call(0, None), (10_000, Answer::Overload { asked: None }));
        assert_eq!(ca.call(SECOND, None), issued(1_110_000));
    }

    #[test]
    fn a_client_that_gave_up_still_costs_the_ca() {
        let mut ca = Ca::new(vec![(0, UP)], Queue::Endless, 60);
        let answers: Vec<_> = (0..4).map(|_| ca.call(0, Some(250_000)).1).collect();
        assert!(matches!(answers[..2], [Answer::Issued { .. }, Answer::Issued { .. }]));
        assert_eq!(answers[2..], [Answer::Deadline, Answer::Deadline]);
        assert_eq!(ca.call(300_000, None), issued(510_000));
    }

    #[test]
    fn an_outage_breaks_what_is_queued() {
        let conditions = vec![(0, UP), (SECOND, Condition::Down), (2 * SECOND, UP)];
        let mut ca = Ca::new(conditions, Queue::Endless, 60);
        let answers: Vec<_> = (0..20).map(|_| ca.call(0, None)).collect();
        assert!(matches!(answers[8].1, Answer::Issued { .. }));
        assert_eq!(answers[19], (SECOND, Answer::Unavailable));
        assert_eq!(ca.call(SECOND + 5, None).1, Answer::Unavailable);
        assert_eq!(ca.call(2 * SECOND, None), issued(2_110_000));
        let mut ca = Ca::new(vec![(0, UP), (SECOND, Condition::Away)], Queue::Endless, 60);
        assert_eq!(ca.call(SECOND + 5, None).1, Answer::Refused);
    }
}
