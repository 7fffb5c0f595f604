//! How much of the machine a shim takes.

use std::{
    fmt::{Display, Formatter, Result as FmtResult},
    fs,
};

use testkit::{Failure, OrFail, shim::Shim};

use super::ARENA;

/// Memory in KiB, bytes of the arena in use, and descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    size: u64,
    resident: u64,
    arena: u64,
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
        let mut uses = lines.iter().rev().filter_map(|line| line.split_once(ARENA)?.1.split(' ').next()?.parse().ok());
        let arena = uses.next().ok_or_else(|| Failure::new("no use of the arena in the log"))?;
        Ok(Self { size: kib("VmSize")?, resident: kib("VmRSS")?, arena, descriptors: descriptors.count() })
    }

    /// No larger than `before`, but for pages that are first touched later, in a peak of the arena or in the image, and
    /// for what one more connection takes of the arena.
    pub(crate) fn is_flat_since(&self, before: &Self) -> bool {
        self.size <= before.size
            && self.resident <= before.resident + 768
            && self.arena <= before.arena + (64 << 10)
            && self.descriptors <= before.descriptors
    }
}

impl Display for Footprint {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { size, resident, arena, descriptors } = self;
        write!(f, "VmSize {size} KiB, VmRSS {resident} KiB, {arena} bytes of the arena, {descriptors} descriptors")
    }
}
