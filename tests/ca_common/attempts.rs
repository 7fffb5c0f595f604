//! Failed attempts to get a certificate, as the shim tells them at level debug: a line each, once it waits and listens
//! for signals.

use testkit::shim::Shim;

use super::Tested;

const WAITING: &str = "waiting before the next attempt wait_ms=";
/// Bounds of the back-off in milliseconds, doubling to half a minute, and for a CA that is asked too much to five.
const BOUNDS: [u64; 12] = [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000];
/// The longest wait for a CA that fails and does not say that it is asked too much.
const CAP: u64 = 30_000;

/// The longest wait, in milliseconds, after so many earlier failures.
pub(crate) fn bound(earlier: usize) -> u64 {
    BOUNDS[earlier.min(BOUNDS.len() - 1)].min(CAP)
}

/// The same for a CA that says that it is asked too much.
pub(crate) fn bound_of_overloaded(earlier: usize) -> u64 {
    let first = BOUNDS.iter().position(|bound| *bound >= CAP).unwrap_or(BOUNDS.len());
    BOUNDS[(first + earlier).min(BOUNDS.len() - 1)]
}

/// The waits, in milliseconds, that a shim has decided on since `mark`: one for each failed attempt.
pub(crate) fn waits(shim: &Shim, mark: usize) -> Vec<u64> {
    let lines = shim.log().lines().into_iter().skip(mark);
    let wait = |line: String| line.split(WAITING).nth(1)?.split(' ').next()?.parse().ok();
    lines.filter_map(wait).collect()
}

/// Returns once `count` failed attempts since `mark`.
pub(crate) async fn failed(shim: &Shim, mark: usize, count: usize) -> Tested {
    while waits(shim, mark).len() < count {
        let seen = shim.log().mark();
        if waits(shim, mark).len() < count {
            shim.wait_for_log_after(seen, WAITING).await?;
        }
    }
    Ok(())
}
