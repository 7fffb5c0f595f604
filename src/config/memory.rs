use locked::{ARENA_KIB, Level};

use super::{reader::Reader, variables};

/// How keys are protected in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Least protection with which to start.
    pub require: Level,
    /// Size of the arena in bytes, guard pages included.
    pub arena_bytes: usize,
}

/// Room for some 20,000 streams; beyond it, one process for so many is a mistake.
const MAX_ARENA_KIB: usize = 256 * 1024;

pub(super) fn read(reader: &mut Reader<'_>) -> MemoryConfig {
    let levels = [("secret", Level::Secret), ("locked", Level::Locked), ("none", Level::None)];
    let kib = reader.parse_with(&variables::SDS_SHIM_ARENA_KIB, |text| match text.parse::<usize>() {
        Ok(kib) if (ARENA_KIB..=MAX_ARENA_KIB).contains(&kib) => Ok(kib),
        _ => Err(format!("expected a number from {ARENA_KIB} to {MAX_ARENA_KIB}")),
    });
    MemoryConfig {
        require: reader.choice(&variables::SDS_SHIM_REQUIRE_LOCKED, &levels),
        arena_bytes: kib.unwrap_or_default() * 1024,
    }
}
