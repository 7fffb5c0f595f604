use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use tracing::warn;

use super::{projected::ProjectedToken, renewal::TokenSource};
use crate::{
    clock::{self, WallTimer},
    config::FileCheck,
    identity::{BearerToken, TokenDigest},
};

/// How late kubelet may bring what it has, in seconds: up to 5.5 minutes were measured.
const LATE: i64 = 360;
/// How much of a token without a beginning is left at the warning, in seconds.
const LEFT: i64 = 300;
/// Longest wait in seconds: what is further away is looked at again.
const AWAY: i64 = 365 * 86_400;

/// Tells when kubelet has stopped to refresh the volume of the service-account token, long before a renewal needs the
/// next one. One timer waits for the token that is held; the file is watched only while something is wrong with it.
pub struct FrozenVolume {
    file: PathBuf,
    token: ProjectedToken,
    timer: WallTimer,
}

/// What is known of the token in the volume. Times are Unix seconds.
struct Held {
    token: TokenDigest,
    begins: Option<i64>,
    ends: i64,
}

impl FrozenVolume {
    /// Looks after the volume of the token in `file`.
    ///
    /// # Errors
    /// When the kernel has no timer for us.
    pub fn new(file: &Path, check: FileCheck) -> io::Result<Self> {
        let token = ProjectedToken::besides(file, check);
        Ok(Self { file: file.to_owned(), token, timer: WallTimer::new()? })
    }

    /// Does so for ever.
    pub async fn follow(mut self) -> Infallible {
        let mut told = None;
        loop {
            let now = clock::now();
            // What is wrong with the token itself is told by the renewal.
            let held = self.token.read(now).ok().and_then(|token| Held::new(&token));
            if let Some(held) = held {
                let due = held.overdue();
                if now < due {
                    let due = Duration::from_secs(due.min(now.saturating_add(AWAY)).max(0) as u64);
                    self.timer.at(UNIX_EPOCH + due).await;
                    continue;
                }
                if told != Some(held.token) {
                    self.warn(&held, now);
                    told = Some(held.token);
                }
            }
            Box::pin(self.token.changed()).await;
        }
    }

    fn warn(&self, held: &Held, now: i64) {
        let written = clock::written(&self.file).unwrap_or(now);
        warn!(
            "{}: the token expires in {} min and its volume has not changed for {} min: kubelet has stopped refreshing it; \
             one failing source freezes the whole volume: see the events in `kubectl describe pod`",
            self.file.display(),
            held.ends.saturating_sub(now) / 60,
            now.saturating_sub(written) / 60
        );
    }
}

impl Held {
    fn new(token: &BearerToken) -> Option<Self> {
        Some(Self { token: token.digest(), begins: token.begins(), ends: token.expires()? })
    }

    /// When another token should have been there. Kubelet asks for one when a fifth of the life is left, so a warning at
    /// that moment would come for every token; of a short life the last twentieth is left for it.
    fn overdue(&self) -> i64 {
        let left = self.begins.map_or(LEFT, |begins| {
            let life = self.ends.saturating_sub(begins).max(0);
            (life / 5 - LATE).max(life / 20)
        });
        self.ends.saturating_sub(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_has_its_time_before_a_token_is_overdue() {
        let token = BearerToken::parse("e30.e30.c2ln".to_owned()).unwrap().digest();
        for (life, left) in [(600, 30), (3600, 360), (3607, 361), (43_200, 8280), (86_400, 16_920), (0, 0), (-5, 0)] {
            let held = Held { token, begins: Some(1000), ends: 1000 + life };
            assert_eq!(held.ends - held.overdue(), left, "of {life} s");
            // It asks when a fifth is left, and looks after a volume every 90 s at the latest.
            assert!(life < 600 || life / 5 - left >= 90, "of {life} s");
        }
        assert_eq!(Held { token, begins: None, ends: 1000 }.overdue(), 700);
        assert_eq!(Held { token, begins: Some(i64::MIN), ends: i64::MAX }.overdue(), i64::MAX - i64::MAX / 5 + LATE);
    }
}
