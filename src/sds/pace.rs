//! How often something may happen.

use std::time::{Duration, Instant};

/// How long those who wait for a token do so before they look again, at the most: one of them may have gone meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Tokens that come back by and by.
pub(super) struct Bucket {
    rate: u32,
    most: f64,
    tokens: f64,
    at: Instant,
    /// What was taken last.
    taken: f64,
    /// When the next one who has to wait may look: after those who wait already.
    next: Instant,
}

impl Bucket {
    /// Full, with this many tokens at the most, and as many more each second as `rate` says.
    pub(super) fn new(most: u32, rate: u32, now: Instant) -> Self {
        Self { rate, most: f64::from(most), tokens: f64::from(most), at: now, taken: 1.0, next: now }
    }

    /// Takes tokens, if there is one; what is taken too much is missing later.
    pub(super) fn take(&mut self, tokens: usize, now: Instant) -> bool {
        self.refill(now);
        let some = self.tokens >= 1.0;
        if some {
            self.taken = tokens as f64;
            self.tokens -= self.taken;
        }
        some
    }

    /// When to look for a token again; nothing if there is one. Each who waits has a time of its own: were all to look when
    /// there is one token, all but one would have looked in vain, a hundred connections a thousand times a second.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        if self.tokens >= 1.0 {
            return None;
        }
        let own = self.next.max(now + self.time(1.0 - self.tokens));
        let wait = own - now;
        if wait > LOOK {
            return Some(LOOK);
        }
        self.next = own + self.time(self.taken);
        Some(wait)
    }

    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= self.most
    }

    /// How long it takes until so many have come back.
    fn time(&self, tokens: f64) -> Duration {
        Duration::from_secs_f64(tokens / f64::from(self.rate))
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
        assert_eq!(bucket.wait(later), Some(LOOK));
        assert!(bucket.wait(later + Duration::from_millis(400)).is_some());
        assert_eq!(bucket.wait(later + Duration::from_millis(500)), None);
        assert!(bucket.is_full(start + WINDOW));
    }

    #[test]
    fn those_who_wait_look_one_after_the_other() {
        let start = Instant::now();
        let mut bucket = Bucket::new(4, 1000, start);
        // Four at a time: so long is the way from one to the next.
        assert!(bucket.take(4, start));
        let waits = [(); 40].map(|()| bucket.wait(start).unwrap());
        let milliseconds = |count| Duration::from_millis(count);
        assert_eq!(waits[..3], [1, 5, 9].map(milliseconds));
        // Who would wait for longer has no time of its own yet.
        assert_eq!((waits[24], waits[25], waits[39]), (milliseconds(97), LOOK, LOOK));
        let mut served = 0;
        for wait in waits {
            served += usize::from(bucket.take(4, start + wait));
        }
        assert_eq!(served, 25);
    }

    #[test]
    fn the_first_lines_of_a_minute_are_written_and_the_others_counted() {
        let start = Instant::now();
        let mut lines = Lines::new(2, start);
        assert_eq!([(); 4].map(|()| lines.next(start)), [(true, 0), (true, 0), (false, 0), (false, 0)]);
        assert_eq!([(); 2].map(|()| lines.next(start + WINDOW)), [(true, 2), (true, 0)]);
    }
}
