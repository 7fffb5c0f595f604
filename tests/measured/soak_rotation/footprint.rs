//! How much of the machine a shim takes.

use std::{
    fmt::{Display, Formatter, Result as FmtResult},
    fs,
};

use testkit::{Failure, OrFail, shim::Shim};

use super::{ARENA, UNTOUCHED};

/// Memory in KiB, bytes of the arena in use, and descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    size: u64,
    resident: u64,
    arena: u64,
    /// What of the arena was free at its peak: more than that was never touched.
    untouched: u64,
    descriptors: usize,
}

impl Footprint {
    pub(crate) fn of(shim: &Shim) -> Result<Self, Failure> {
        let text = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("read a shim's status")?;
        let kib = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.strip_suffix(" kB"));
            value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| Failure::new(format!("no {name}")))
        };
        let descriptors = fs::read_dir(format!("/proc/{}/fd", shim.pid())).or_fail("count a shim's descriptors")?;
        let lines = shim.log().lines();
        let last = |field: &str| {
            let told = |line: &String| line.split_once(field)?.1.split(' ').next()?.parse().ok();
            lines.iter().rev().find_map(told).ok_or_else(|| Failure::new(format!("no {field} in the log")))
        };
        let (arena, untouched) = (last(ARENA)?, last(UNTOUCHED)?);
        Ok(Self { size: kib("VmSize")?, resident: kib("VmRSS")?, arena, untouched, descriptors: descriptors.count() })
    }

    /// No larger than `before`, but for pages that are first touched later, in a peak of the arena or in the image, and
    /// for what one more connection takes of the arena.
    pub(crate) fn is_flat_since(&self, before: &Self) -> bool {
        let touched = before.untouched.saturating_sub(self.untouched) / 1024;
        self.size <= before.size
            && self.resident <= before.resident + touched + 768
            && self.arena <= before.arena + (64 << 10)
            && self.descriptors <= before.descriptors
    }
}

impl Display for Footprint {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { size, resident, arena, untouched, descriptors } = self;
        write!(
            f,
            "VmSize {size} KiB, VmRSS {resident} KiB, {arena} bytes of the arena ({untouched} free at its peak), \
             {descriptors} descriptors"
        )
    }
}
