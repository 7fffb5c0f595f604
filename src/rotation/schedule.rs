//! When the next renewal is due. Pure functions: times and randomness are arguments.

use std::time::Duration;

use crate::config::{GracePeriod, RotationConfig};

/// Least time between two CSRs.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Our own window: renew after this share of the life that is left on receipt.
const WINDOW: std::ops::Range<f64> = 0.45..0.65;

/// How long after `now` a certificate that ends at `not_after` is to be renewed; both in Unix seconds. `random` is
/// uniform in 0..1 and spreads the renewals of workloads that started together.
///
/// What counts is the life that is left on receipt, not the whole validity: CAs backdate NotBefore, so that for a
/// short certificate a share of the whole could already be over.
pub fn renewal_after(config: &RotationConfig, not_after: i64, now: i64, random: f64) -> Duration {
    let left = Duration::from_secs(not_after.saturating_sub(now).max(0) as u64);
    let used = match config.grace_period {
        None => WINDOW.start + (WINDOW.end - WINDOW.start) * random,
        // Istio: the ratio is what is left at the renewal, and the jitter moves it either way.
        Some(GracePeriod { ratio, jitter }) => 1.0 - (ratio + jitter * (2.0 * random - 1.0)).clamp(0.0, 1.0),
    };
    left.mul_f64(used).max(MIN_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: RotationConfig = RotationConfig { grace_period: None };

    fn istio(ratio: f64, jitter: f64) -> RotationConfig {
        RotationConfig { grace_period: Some(GracePeriod { ratio, jitter }) }
    }

    #[test]
    fn renews_within_the_window_of_what_is_left() {
        for (config, random, expected) in [
            (OURS, 0.0, 450),
            (OURS, 0.5, 550),
            (istio(0.5, 0.0), 0.3, 500),
            (istio(0.2, 0.0), 0.3, 800),
            (istio(0.5, 0.1), 0.0, 600),
            (istio(0.5, 0.1), 1.0, 400),
        ] {
            let after = renewal_after(&config, 1_000_000 + 1000, 1_000_000, random);
            assert!((after.as_secs_f64() - f64::from(expected)).abs() < 1e-3, "{config:?} {random} {after:?}");
        }
    }

    #[test]
    fn never_in_the_past_never_a_busy_loop_and_before_the_end() {
        for config in [OURS, istio(0.0, 0.0), istio(1.0, 1.0), istio(0.5, 0.1)] {
            for life in [-5, 0, 1, 2, 10, 3600, 86_400, 315_360_000] {
                for random in [0.0, 0.25, 0.999_999] {
                    let after = renewal_after(&config, 1_700_000_000 + life, 1_700_000_000, random);
                    assert!(after >= MIN_INTERVAL);
                    assert!(after.as_secs_f64() <= (life as f64).max(1.0), "{config:?} {life} {after:?}");
                }
            }
        }
    }
}
