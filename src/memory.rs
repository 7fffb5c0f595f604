//! What must hold of the memory that keys live in, before anything is served.

use std::io;

use locked::{Kind, Level, ProcessLock, Report};
use tracing::{info, warn};

use crate::config::MemoryConfig;

/// The protection that was asked for is not to be had here.
#[derive(Debug, thiserror::Error)]
#[error("SDS_SHIM_REQUIRE_LOCKED={required}, and keys would be protected only at the level {held}: {missing}")]
pub struct TooLittleProtection {
    required: Level,
    held: Level,
    missing: String,
}

/// Makes the arena as large as asked, locks the process in memory, and tells what holds.
///
/// # Errors
/// When that is less than the configuration requires.
pub fn protect(config: &MemoryConfig) -> Result<(), TooLittleProtection> {
    let more = config.arena_bytes.saturating_sub(locked::mapped());
    if more > 0
        && let Err(error) = locked::extend(more)
    {
        warn!("the arena keeps its size, SDS_SHIM_ARENA_KIB cannot be had: {error}");
    }
    locked::lock_process();
    let report = locked::report();
    if report.level() < config.require {
        let missing = report.missing.join("; ");
        return Err(TooLittleProtection { required: config.require, held: report.level(), missing });
    }
    info!("{}", describe(&report));
    for missing in &report.missing {
        warn!("{missing}");
    }
    Ok(())
}

/// Leaves only the system calls that serving takes, if the configuration wants that. `following` is whether a command
/// was started, which is not bound; nothing can be started after this.
///
/// # Errors
/// When the kernel refuses.
pub fn restrict_system_calls(config: &MemoryConfig, following: bool) -> io::Result<()> {
    if config.strict_calls {
        locked::restrict_system_calls(following)
            .map_err(|error| io::Error::new(error.kind(), format!("SDS_SHIM_SECCOMP=strict cannot be had: {error}")))?;
        info!("system calls that serving does not take are refused from now on");
    }
    Ok(())
}

/// One sentence on what holds.
pub fn describe(report: &Report) -> String {
    let kind = match (report.kind, report.arena_locked) {
        (Kind::Secret, _) => "secret memory",
        (Kind::Anonymous, true) => "locked memory",
        (Kind::Anonymous, false) => "memory that is NOT locked",
    };
    let process = match report.process {
        ProcessLock::Whole => "the whole process is locked",
        ProcessLock::Present => "what was mapped at the start is locked",
        ProcessLock::Refused(_) | ProcessLock::NotAsked => "the rest of the process is not locked",
    };
    let limit = report.limit.map_or_else(|| "none".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    format!(
        "keys are in {kind} ({} KiB), {process}; {} of {} KiB are locked, the limit is {limit}",
        report.arena_mapped / 1024,
        report.locked / 1024,
        report.mapped / 1024,
    )
}
