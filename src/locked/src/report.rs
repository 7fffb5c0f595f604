//! What protection holds, what is missing, and how to get it.

use std::{fmt, str::FromStr};

use nix::errno::Errno;

use crate::{
    arena::{Usage, lock, usage},
    mapping::{Refusal, page_size},
    process::{KernelStatus, ProcessLock, on_gvisor, outcome},
    secret::SecretUsage,
};

/// How well keys are protected, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The arena is ordinary memory: tokens, and keys where there is no secret memory, can be swapped out.
    None,
    /// Keys, and all else in the arena, are locked in memory and left out of core dumps.
    Locked,
    /// Every byte of a key is in secret memory, on pages that are charged for, and the whole process is locked.
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

/// For whom the kernel counts secret memory against the limit of locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// For each process by itself, together with what it locks.
    Process,
    /// For all processes of the user together (Linux 6.12.113, 6.1.192 and later).
    User,
}

/// What holds at the time of asking.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether every byte of a key is in secret memory.
    pub keys_secret: bool,
    /// What there is of secret memory, and what of it is in use.
    pub secret: SecretUsage,
    /// For whom the kernel counts it, as far as it could be found out.
    pub counting: Option<Counting>,
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
    /// Bytes that are locked (`VmLck`), as far as the kernel tells. Secret memory is among them where it is counted for
    /// each process.
    pub locked: Option<u64>,
    /// One sentence for each protection that is missing: what, why, and which setting gives it.
    pub missing: Vec<String>,
}

impl Report {
    /// The level that all of this amounts to.
    #[must_use]
    pub fn level(&self) -> Level {
        match (self.keys_secret, self.arena_locked, self.process) {
            (true, true, ProcessLock::Whole) => Level::Secret,
            (_, true, _) => Level::Locked,
            _ => Level::None,
        }
    }
}

/// Asks the kernel and the arena.
#[must_use]
pub fn report() -> Report {
    let arena = lock();
    let unlocked = arena.main().map_or(Some(Errno::ENOMEM), |main| main.unlocked);
    let arena_mapped = arena.mapped();
    let (keys_secret, secret) = (arena.secrets.hold_all(), arena.secrets.usage());
    let (opened, refusal) = (arena.secrets.is_open(), arena.secrets.refusal());
    // What comes next allocates.
    drop(arena);
    let status = KernelStatus::read();
    let (process, counting) = if on_gvisor() { (ProcessLock::Pretended, None) } else { outcome() };
    // A lock of the whole process, as root can have it, includes an arena that could not be locked by itself.
    let arena_locked = match process {
        ProcessLock::Pretended => false,
        ProcessLock::Whole | ProcessLock::Present => true,
        ProcessLock::NotAsked | ProcessLock::Refused(_) => unlocked.is_none(),
    };
    let missing = [
        refusal.filter(|_| !keys_secret).map(|refusal| no_secret_memory(refusal, secret.charged, &status)),
        (opened && refusal.is_none() && secret.spilled > 0).then(|| full(secret)),
        unlocked
            .filter(|_| !arena_locked && process != ProcessLock::Pretended)
            .map(|errno| arena_not_locked(errno, keys_secret, arena_mapped, &status)),
        process_not_locked(process, keys_secret, &status),
    ];
    Report {
        keys_secret,
        secret,
        counting,
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

fn no_secret_memory(refusal: Refusal, charged: usize, status: &KernelStatus) -> String {
    let all = if charged == 0 { "keys are not in secret memory" } else { "not all keys are in secret memory" };
    match refusal {
        // What a kernel says that does not know the call, and some container runtimes where their profile does not.
        Refusal::Create(Errno::ENOSYS) if on_gvisor() => format!("{all}: memfd_secret is not available in gVisor"),
        Refusal::Create(Errno::ENOSYS) => format!(
            "{all}: memfd_secret is not available: it needs Linux 5.14 or later with CONFIG_SECRETMEM, before 6.5 \
             also the boot parameter secretmem.enable=1, and a seccomp profile that allows this system call"
        ),
        Refusal::Create(Errno::EPERM | Errno::EACCES) => {
            format!("{all}: memfd_secret is forbidden; allow this system call in the seccomp profile")
        }
        Refusal::Map(Errno::EAGAIN | Errno::ENOMEM) => {
            format!(
                "{all}: the process has reached its limit of locked memory; {}",
                raise(status, status.mapped / 1024)
            )
        }
        Refusal::Charge { had, wanted } => shared_limit(all, had, wanted, status),
        Refusal::Create(errno) | Refusal::Map(errno) => format!("{all}: the kernel said: {}", errno.desc()),
    }
}

/// Where the limit counts for all processes of a user, the capability does not help, and a larger limit only as far as
/// all of them fit.
fn shared_limit(all: &str, had: usize, wanted: usize, status: &KernelStatus) -> String {
    let (page, limit) = (page_size() as u64 / 1024, limit(status));
    let user = nix::unistd::getuid();
    format!(
        "{all}: this kernel counts secret memory for all processes of a user together, and beside what others of UID \
         {user} use, the limit of locked memory (RLIMIT_MEMLOCK, {limit}) has room for {} of {} KiB; raise the limit, \
         give each pod a user of its own (runAsUser), or use user namespaces (hostUsers: false); IPC_LOCK does not help",
        had as u64 * page,
        wanted as u64 * page
    )
}

fn full(secret: SecretUsage) -> String {
    format!(
        "not all keys are in secret memory: {} bytes of key material do not fit into its {} KiB; use fewer keys at a time \
         (file names that clients request, tokens that come with requests)",
        secret.spilled,
        secret.charged / 1024
    )
}

/// What a host can do where nothing is locked.
fn swapped(keys_secret: bool) -> &'static str {
    if keys_secret { "tokens can be swapped out" } else { "keys can be swapped out" }
}

fn arena_not_locked(errno: Errno, keys_secret: bool, mapped: usize, status: &KernelStatus) -> String {
    let (what, kib) = (swapped(keys_secret), mapped / 1024);
    match errno {
        Errno::ENOMEM | Errno::EPERM | Errno::EAGAIN => {
            format!("{what}: {kib} KiB could not be locked in memory; {}", raise(status, kib as u64))
        }
        errno => format!("{what}: the kernel refused to lock memory: {}", errno.desc()),
    }
}

fn process_not_locked(process: ProcessLock, keys_secret: bool, status: &KernelStatus) -> Option<String> {
    let needed = (status.mapped + crate::process::HEADROOM).div_ceil(1024);
    match process {
        ProcessLock::Whole | ProcessLock::NotAsked => None,
        ProcessLock::Pretended => Some(format!(
            "{}: gVisor accepts memory locks but does not pass them on to its host; where the host has no swap, set \
             SDS_SHIM_REQUIRE_LOCKED=none",
            swapped(keys_secret)
        )),
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
fn raise(status: &KernelStatus, kib: u64) -> String {
    format!(
        "the limit of locked memory (RLIMIT_MEMLOCK, `ulimit -l`, LimitMEMLOCK=) is {}: raise it to at least {kib} \
         KiB, or grant the IPC_LOCK capability",
        limit(status)
    )
}

fn limit(status: &KernelStatus) -> String {
    status.limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}
