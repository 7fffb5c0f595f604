//! What protection holds, what is missing, and how to get it.

use std::{fmt, str::FromStr};

use nix::errno::Errno;

use crate::{
    arena::{Usage, lock, usage},
    mapping::{Kind, Refusal},
    process::{ProcessLock, Status, outcome},
};

/// How well keys are protected, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The arena is ordinary memory: keys can be swapped out.
    None,
    /// The arena is locked in memory, and left out of core dumps.
    Locked,
    /// The arena is secret memory, and the whole process is locked.
    Secret,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Locked => "locked",
            Self::Secret => "secret",
        })
    }
}

impl FromStr for Level {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::None, Self::Locked, Self::Secret].into_iter().find(|level| level.to_string() == text).ok_or(())
    }
}

/// What holds at the time of asking.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kind of the arena's memory.
    pub kind: Kind,
    /// Whether the arena can not be swapped out.
    pub arena_locked: bool,
    /// Bytes that the arena has mapped, guard pages included.
    pub arena_mapped: usize,
    /// What is in use of it.
    pub usage: Usage,
    /// Whether the rest of the process is locked as well.
    pub process: ProcessLock,
    /// The soft limit of locked memory (`RLIMIT_MEMLOCK`) in bytes; none is no limit.
    pub limit: Option<u64>,
    /// Bytes that the process has mapped (`VmSize`): what the limit must hold.
    pub mapped: u64,
    /// Bytes that are locked (`VmLck`).
    pub locked: u64,
    /// One sentence for each protection that is missing: what, why, and which setting gives it.
    pub missing: Vec<String>,
}

impl Report {
    /// The level that all of this amounts to.
    #[must_use]
    pub fn level(&self) -> Level {
        match (self.kind, self.arena_locked, self.process) {
            (Kind::Secret, true, ProcessLock::Whole) => Level::Secret,
            (_, true, _) => Level::Locked,
            _ => Level::None,
        }
    }
}

/// Asks the kernel and the arena.
#[must_use]
pub fn report() -> Report {
    let arena = lock();
    let (kind, refusal, unlocked) = arena
        .main()
        .map_or((Kind::Anonymous, None, Some(Errno::ENOMEM)), |main| (main.kind, main.refusal, main.unlocked));
    let arena_mapped = arena.mapped();
    // What comes next allocates.
    drop(arena);
    let status = Status::read();
    let process = outcome();
    // A lock of the whole process, as root can have it, includes an arena that could not be locked by itself.
    let arena_locked = unlocked.is_none() || matches!(process, ProcessLock::Whole | ProcessLock::Present);
    let arena_kib = arena_mapped / 1024;
    let missing = [
        refusal.map(|refusal| no_secret_memory(refusal, arena_kib, &status)),
        unlocked.filter(|_| !arena_locked).map(|errno| arena_not_locked(errno, arena_kib, &status)),
        process_not_locked(process, &status),
    ];
    Report {
        kind,
        arena_locked,
        arena_mapped,
        usage: usage(),
        process,
        limit: status.limit,
        mapped: status.mapped,
        locked: status.locked,
        missing: missing.into_iter().flatten().collect(),
    }
}

fn no_secret_memory(refusal: Refusal, arena_kib: usize, status: &Status) -> String {
    match refusal {
        // What a kernel says that does not know the call, and some container runtimes where their profile does not.
        Refusal::Create(Errno::ENOSYS) => "keys are not in secret memory: there is no memfd_secret here; it needs \
             Linux 5.14 or later with CONFIG_SECRETMEM, before 6.5 also the boot parameter secretmem.enable=1, and a \
             seccomp profile that allows this system call"
            .to_owned(),
        Refusal::Create(Errno::EPERM | Errno::EACCES) => "keys are not in secret memory: memfd_secret is forbidden; \
             allow this system call in the seccomp profile"
            .to_owned(),
        Refusal::Map(Errno::EAGAIN | Errno::ENOMEM) => format!(
            "keys are not in secret memory: it needs {arena_kib} KiB of locked memory, and {}",
            raise(status, arena_kib as u64)
        ),
        Refusal::Create(errno) | Refusal::Map(errno) => {
            format!("keys are not in secret memory: the kernel said: {}", errno.desc())
        }
    }
}

fn arena_not_locked(errno: Errno, arena_kib: usize, status: &Status) -> String {
    match errno {
        Errno::ENOMEM | Errno::EPERM | Errno::EAGAIN => format!(
            "keys can be swapped out: {arena_kib} KiB could not be locked in memory; {}",
            raise(status, arena_kib as u64)
        ),
        errno => format!("keys can be swapped out: the kernel refused to lock memory: {}", errno.desc()),
    }
}

fn process_not_locked(process: ProcessLock, status: &Status) -> Option<String> {
    let needed = (status.mapped + crate::process::HEADROOM).div_ceil(1024);
    match process {
        ProcessLock::Whole | ProcessLock::NotAsked => None,
        ProcessLock::Present => Some(format!(
            "what the process maps from now on is not locked in memory (keys are): {}",
            raise(status, needed)
        )),
        ProcessLock::Refused(Errno::ENOMEM | Errno::EPERM | Errno::EAGAIN) => Some(format!(
            "the process as a whole is not locked in memory: it has {} KiB mapped; {}",
            status.mapped / 1024,
            raise(status, needed)
        )),
        ProcessLock::Refused(errno) => {
            Some(format!("the process as a whole is not locked in memory: the kernel said: {}", errno.desc()))
        }
    }
}

/// The setting that would give so many KiB.
fn raise(status: &Status, kib: u64) -> String {
    let limit = status.limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    format!(
        "the limit of locked memory (RLIMIT_MEMLOCK, `ulimit -l`, LimitMEMLOCK=) is {limit}: raise it to at least \
         {kib} KiB, or give the capability IPC_LOCK"
    )
}
