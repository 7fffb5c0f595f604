use std::{future, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Renewals that somebody asks for, no sooner after each other than this: what is asked meanwhile is one renewal, at
/// the end of the pause. So a storm of requests costs the CA no more than somebody who asks calmly.
pub struct Forced {
    pause: Duration,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Forced {
    /// With this pause at least between two of them.
    pub fn new(pause: Duration) -> Self {
        Self { pause, last: None, due: None }
    }

    /// Somebody asks.
    pub fn ask(&mut self) {
        let now = Instant::now();
        self.due.get_or_insert_with(|| self.last.map_or(now, |last| now.max(last + self.pause)));
    }

    /// Returns when a renewal is due that was asked for. Without one it sets no timer.
    pub async fn due(&mut self) {
        match self.due {
            Some(due) if due > Instant::now() => sleep_until(due).await,
            Some(_) => {}
            None => future::pending().await,
        }
        (self.due, self.last) = (None, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_storm_is_two_renewals_the_first_at_once() {
        let mut forced = Forced::new(PAUSE);
        assert!(timeout(PAUSE, forced.due()).await.is_err(), "nobody asked");
        let start = Instant::now();
        forced.ask();
        forced.due().await;
        let first = Instant::now();
        assert!(first - start < PAUSE);
        (0..100).for_each(|_| forced.ask());
        forced.due().await;
        assert!(first.elapsed() >= PAUSE);
        assert!(timeout(2 * PAUSE, forced.due()).await.is_err(), "they are merged");
    }
}
