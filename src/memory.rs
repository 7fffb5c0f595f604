//! What must hold of the memory that keys live in, before anything is served and at each renewal.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use locked::{Counting, Level, Need, ProcessLock, Report};
use tracing::{info, warn};

use crate::config::MemoryConfig;

/// The protection that was asked for is not to be had here.
#[derive(Debug, thiserror::Error)]
#[error("SDS_SHIM_REQUIRE_LOCKED={required} is not met: memory is protected only at the level {held}: {missing}")]
pub struct TooLittleProtection {
    required: Level,
    held: Level,
    missing: String,
}

/// Whether all keys were in secret memory when that was told last.
static TOLD_SECRET: AtomicBool = AtomicBool::new(true);

/// Takes secret memory for the keys, makes the arena as large as asked, locks the process in memory, and tells what
/// holds.
///
/// # Errors
/// When that is less than the configuration requires.
pub fn protect(config: &MemoryConfig, need: Need) -> Result<(), TooLittleProtection> {
    if let Err(error) = enlarge(config) {
        warn!("cannot extend the arena to SDS_SHIM_ARENA_KIB: {error}; continuing with the default size");
    }
    locked::open_secret_memory(need);
    locked::lock_process();
    let report = locked::report();
    if report.level() < config.require {
        let missing = report.missing.join("; ");
        return Err(TooLittleProtection { required: config.require, held: report.level(), missing });
    }
    TOLD_SECRET.store(report.keys_secret, Ordering::Relaxed);
    info!("{}", describe(&report));
    for missing in &report.missing {
        warn!("{missing}");
    }
    Ok(())
}

/// Makes the arena as large as asked.
///
/// # Errors
/// What the kernel says; the arena stays as it was.
pub fn enlarge(config: &MemoryConfig) -> io::Result<()> {
    match config.arena_bytes.saturating_sub(locked::mapped()) {
        0 => Ok(()),
        more => locked::extend(more),
    }
}

/// Asks again for secret memory where other processes of the user had it all. For the moment before a key is made: keys
/// do not move, so each renewal is the chance of a process that started on a full node.
pub fn before_a_key() {
    locked::reopen_secret_memory();
}

/// Tells once when not all keys are in secret memory any more, and when they are again. For the moment after keys have
/// come or gone.
pub fn look_again() {
    let secret = locked::keys_are_secret();
    if secret == TOLD_SECRET.swap(secret, Ordering::Relaxed) {
        return;
    }
    if secret {
        info!("all keys are in secret memory again");
    } else {
        locked::report().missing.first().into_iter().for_each(|missing| warn!("{missing}"));
    }
}

/// One sentence on what holds.
pub fn describe(report: &Report) -> String {
    let kib = |bytes: usize| bytes.div_ceil(1024);
    let keys = match (report.secret.charged, report.secret.spilled) {
        (0, _) if report.arena_locked => "locked memory".to_owned(),
        (0, _) => "memory that is NOT locked".to_owned(),
        (charged, 0) => format!("secret memory ({} KiB)", kib(charged)),
        (charged, spilled) => {
            format!("secret memory ({} KiB), and {} KiB of them in locked memory", kib(charged), kib(spilled))
        }
    };
    let process = match (report.process, report.arena_locked) {
        (ProcessLock::Whole, _) => "the whole process is locked",
        (ProcessLock::Present, _) => "what was mapped at the start is locked",
        (ProcessLock::Refused(_) | ProcessLock::NotAsked, true) => "the rest of the process is not locked",
        (ProcessLock::Refused(_) | ProcessLock::NotAsked, false) | (ProcessLock::Pretended, _) => {
            "the process is NOT locked"
        }
    };
    let limit = report.limit.map_or_else(|| "none".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    let mapped = report.mapped / 1024;
    let amounts = report.locked.map_or_else(
        || format!("{mapped} KiB are mapped, this kernel does not report what is locked"),
        |locked| format!("{} of {mapped} KiB are locked", locked / 1024),
    );
    let mut text = format!("keys are in {keys}, {process}; {amounts}, the limit is {limit}");
    match report.counting {
        Some(Counting::User) => {
            text.push_str("; this kernel counts secret memory for all processes of a user together")
        }
        Some(Counting::Process) => text.push_str("; this kernel counts secret memory for each process"),
        None => {}
    }
    text
}
