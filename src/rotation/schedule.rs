//! When the next renewal is due. Pure functions: times and randomness are arguments.

use std::time::Duration;

use crate::config::{GracePeriod, Schedule, WINDOW};

/// Least time between two CSRs.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Within which share of the life renewals for the sake of the availability target are spread, and after which they
/// come where it cannot be met.
const EARLIEST: f64 = 0.1;

/// What is left of the life for the renewal itself, whatever the settings say: a share, and at least so long. A ratio
/// of 0 would renew when it is over.
const RESERVE: f64 = 0.05;
const MIN_RESERVE: Duration = Duration::from_secs(2);

/// How long after `now` a certificate that ends at `not_after` is to be renewed; both in Unix seconds. `random` is
/// uniform in 0..1 and spreads the renewals of workloads that started together.
///
/// What counts is the life that is left on receipt, not the whole validity: CAs backdate NotBefore, so that for a
/// short certificate a share of the whole could already be over.
pub fn renewal_after(schedule: &Schedule, not_after: i64, now: i64, random: f64) -> Duration {
    let left = Duration::from_secs(not_after.saturating_sub(now).max(0) as u64);
    let used = match schedule.grace_period {
        None => WINDOW.start + (WINDOW.end - WINDOW.start) * random,
        // Istio: the ratio is what is left at the renewal, and the jitter moves it either way.
        Some(GracePeriod { ratio, jitter }) => 1.0 - (ratio + jitter * (2.0 * random - 1.0)).clamp(0.0, 1.0),
    };
    let mut after = left.mul_f64(used);
    if let Some(target) = schedule.availability_target {
        let (spare, spread) = (left.saturating_sub(target), left.mul_f64(EARLIEST));
        after = after.min(match can_meet(target, left) {
            true => spare - spread.min(spare / 2).mul_f64(random),
            // What cannot be met must not make a busy loop.
            false => spread.mul_f64(1.0 + random),
        });
    }
    let reserve = left.mul_f64(RESERVE).max(MIN_RESERVE);
    after.min(left.saturating_sub(reserve)).max(MIN_INTERVAL)
}

/// Whether a certificate with this life left can be renewed so that the target is always left: a twentieth of the life
/// is the least that must pass between two renewals for its sake.
pub(super) fn can_meet(target: Duration, left: Duration) -> bool {
    left.saturating_sub(target) >= left / 20
}

#[cfg(test)]
mod tests;
