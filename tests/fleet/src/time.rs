//! Virtual time: microseconds since the simulation began.

use std::time::Duration;

/// A moment, or how long something lasts.
pub type Micros = u64;

/// A second.
pub const SECOND: Micros = 1_000_000;
/// A minute.
pub const MINUTE: Micros = 60 * SECOND;
/// An hour.
pub const HOUR: Micros = 60 * MINUTE;

/// A duration as virtual time; what is longer than the simulation is the same for ever.
pub fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// Whole seconds, as certificates count them.
pub fn seconds(at: Micros) -> i64 {
    i64::try_from(at / SECOND).unwrap_or(i64::MAX)
}
