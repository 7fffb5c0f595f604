use locked::Level;

use super::{reader::Reader, variables};

/// How keys are protected in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Least protection with which to start.
    pub require: Level,
    /// Size of the arena in bytes, guard pages included.
    pub arena_bytes: usize,
}

pub(super) fn read(reader: &mut Reader<'_>) -> MemoryConfig {
    let kib = reader.number(&variables::SDS_SHIM_ARENA_KIB).unwrap_or_default();
    MemoryConfig {
        require: reader.choice(&variables::SDS_SHIM_REQUIRE_LOCKED, [Level::Secret, Level::Locked, Level::None]),
        arena_bytes: kib as usize * 1024,
    }
}
