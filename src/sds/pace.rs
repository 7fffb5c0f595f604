//! How often something may happen.

use std::time::{Duration, Instant};

/// Tokens that come back by and by.
pub(super) struct Bucket {
    rate: u32,
    most: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Full, with this many tokens at the most, and as many more each second as `rate` says.
    pub(super) fn new(most: u32, rate: u32, now: Instant) -> Self {
        Self { rate, most: f64::from(most), tokens: f64::from(most), at: now }
    }

    /// Takes tokens, if there is one; what is taken too much is missing later.
    pub(super) fn take(&mut self, tokens: usize, now: Instant) -> bool {
        self.refill(now);
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= tokens as f64;
        }
        some
    }

    /// How long it takes until there is a token; nothing if there is one.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.tokens < 1.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / f64::from(self.rate)))
    }

    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= self.most
    }

    fn refill(&mut self, now: Instant) {
        let new = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(self.rate);
        (self.tokens, self.at) = ((self.tokens + new).min(self.most), now);
    }
}

/// Lines of the log that have one cause: the first of each minute are written, the others counted.
pub(super) struct Lines {
    most: u32,
    written: u32,
    left_out: u32,
    since: Instant,
}

/// How long lines are counted together.
const WINDOW: Duration = Duration::from_secs(60);

impl Lines {
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self { most, written: 0, left_out: 0, since: now }
    }

    /// Whether a line may be written now, and how many were left out before it, which is told once.
    pub(super) fn next(&mut self, now: Instant) -> (bool, u32) {
        let mut before = 0;
        if now.saturating_duration_since(self.since) >= WINDOW {
            before = self.left_out;
            *self = Self::new(self.most, now);
        }
        let may = self.written < self.most;
        if may {
            self.written += 1;
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        (may, before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_what_it_holds_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10, start);
        assert!((0..3).all(|_| bucket.take(1, start)));
        assert!(!bucket.take(1, start));
        assert_eq!(bucket.wait(start), Some(Duration::from_millis(100)));
        let later = start + Duration::from_millis(101);
        assert_eq!(bucket.wait(later), None);
        // More than there is, once: it is missing afterwards.
        assert!(bucket.take(5, later));
        assert!(bucket.wait(later).is_some_and(|wait| wait > Duration::from_millis(400)));
        assert!(bucket.is_full(start + WINDOW));
    }

    #[test]
    fn the_first_lines_of_a_minute_are_written_and_the_others_counted() {
        let start = Instant::now();
        let mut lines = Lines::new(2, start);
        assert_eq!([(); 4].map(|()| lines.next(start)), [(true, 0), (true, 0), (false, 0), (false, 0)]);
        assert_eq!([(); 2].map(|()| lines.next(start + WINDOW)), [(true, 2), (true, 0)]);
    }
}
