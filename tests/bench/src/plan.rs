//! How much is measured.

use std::time::Duration;

use testkit::Failure;

/// The parts, in the order in which they run.
pub(crate) const PARTS: [&str; 7] = ["start", "node", "streams", "idle", "instructions", "sizes", "load"];

/// How often and how long everything is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// A run that shows that every part works, rather than figures to rely on.
    pub(crate) quick: bool,
    /// Parts that are left out.
    parts: Vec<String>,
    /// Starts of each kind.
    pub(crate) starts: usize,
    /// Starts of each kind that take the better part of a second.
    pub(crate) long_starts: usize,
    /// How often fifty are started together.
    pub(crate) crowds: usize,
    /// Numbers of streams, ascending.
    pub(crate) streams: &'static [usize],
    /// Rotations that each number of streams sees.
    pub(crate) rotations: usize,
    /// How long the idle are watched.
    pub(crate) idle: Duration,
    /// Runs of each way to rotate under load.
    pub(crate) load_runs: usize,
    /// How long each run has a fixed rate, and how long it is saturated.
    pub(crate) fixed: Duration,
    pub(crate) saturated: Duration,
}

impl Plan {
    /// From the environment: `BENCH_QUICK=1`, and `BENCH_ONLY` with some of [`PARTS`].
    pub(crate) fn from_env() -> Result<Self, Failure> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let parts: Vec<_> = text("BENCH_ONLY").split([',', ' ']).filter(|p| !p.is_empty()).map(str::to_owned).collect();
        if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            return Err(Failure::new(format!("BENCH_ONLY: there is no {unknown:?}, but {}", PARTS.join(", "))));
        }
        if !parts.is_empty() && !matches!(text("BENCH_README").as_str(), "" | "0") {
            return Err(Failure::new("BENCH_README=1 writes all parts into the manual: leave BENCH_ONLY out"));
        }
        let seconds = Duration::from_secs;
        Ok(if matches!(text("BENCH_QUICK").as_str(), "" | "0") {
            Self {
                quick: false,
                parts,
                starts: 100,
                long_starts: 20,
                crowds: 5,
                streams: &[1, 100, 1_000, 10_000],
                rotations: 20,
                idle: seconds(60),
                load_runs: 3,
                fixed: seconds(20),
                saturated: seconds(10),
            }
        } else {
            Self {
                quick: true,
                parts,
                starts: 5,
                long_starts: 2,
                crowds: 1,
                streams: &[1, 100, 1_000, 10_000],
                rotations: 3,
                idle: seconds(5),
                load_runs: 1,
                fixed: seconds(7),
                saturated: seconds(3),
            }
        })
    }

    /// Whether all parts are to run.
    pub(crate) fn is_whole(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether this part is to run.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|named| named == part)
    }
}
