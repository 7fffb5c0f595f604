//! What is done to the process as a whole.

use std::{
    fs, io,
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
};

/// Under a lock of future mappings, each of them fails once the limit is reached. A thread that resolves a name, or
/// a child that is started, must still fit.
pub(crate) const HEADROOM: u64 = 256 << 10;

/// How much of the process is locked in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessLock {
    /// [`lock_process`] was not called.
    NotAsked,
    /// All of it, and what it will map.
    Whole,
    /// What was mapped at that time: the limit leaves no room for more.
    Present,
    /// Nothing but the arena, if that: the kernel's answer.
    Refused(Errno),
}

static OUTCOME: Mutex<ProcessLock> = Mutex::new(ProcessLock::NotAsked);

/// Locks the whole process in memory, as far as the limit allows. Call it when everything is mapped and before any
/// other thread exists. When it is refused, nothing is half done: whatever holds a key is in the arena.
pub fn lock_process() -> ProcessLock {
    keep_libc_small();
    let status = Status::read();
    let fits = status.holds_ipc_lock || status.limit.is_none_or(|limit| status.mapped + HEADROOM <= limit);
    // Future mappings alone could be locked without the present ones fitting, but then each would fail.
    let (flags, success) = if fits {
        (MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE, ProcessLock::Whole)
    } else {
        (MlockAllFlags::MCL_CURRENT, ProcessLock::Present)
    };
    let outcome = mlockall(flags).map_or_else(ProcessLock::Refused, |()| success);
    *OUTCOME.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    outcome
}

pub(crate) fn outcome() -> ProcessLock {
    *OUTCOME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What other processes of our user, a core dump, a child or a file of ours could tell: nothing. No core dumps, no
/// reading of our memory, no new privileges, files for us alone, no descriptor left to a child.
///
/// # Errors
/// When the kernel refuses one of them.
pub fn harden_process() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    umask(Mode::from_bits_truncate(0o077));
    close_inherited_on_exec();
    Ok(())
}

/// Kernels before 5.11 cannot do it; there, inherited descriptors stay as whoever started us wanted them.
fn close_inherited_on_exec() {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: the call takes no pointers, and closes nothing: it sets a flag.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) };
}

/// glibc's own heap serves only glibc: name resolution and the like. Without this, a second thread would reserve
/// 64 MiB, and a large block would be a mapping, which fails when the limit is near.
fn keep_libc_small() {
    #[cfg(target_env = "gnu")]
    for (option, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 16 << 20), (libc::M_TOP_PAD, 0), (libc::M_TRIM_THRESHOLD, 64 << 10)]
    {
        // SAFETY: mallopt takes numbers, and no other thread allocates meanwhile.
        let _ = unsafe { libc::mallopt(option, value) };
    }
}

/// What the kernel says of the process, in bytes.
pub(crate) struct Status {
    pub(crate) mapped: u64,
    pub(crate) locked: u64,
    /// The soft limit of locked memory; none is no limit.
    pub(crate) limit: Option<u64>,
    pub(crate) holds_ipc_lock: bool,
}

impl Status {
    /// Without /proc all is zero.
    pub(crate) fn read() -> Self {
        const CAP_IPC_LOCK: u64 = 14;
        let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let kib = |name: &str| field(name).trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
        let capabilities = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
        Self {
            mapped: kib("VmSize:"),
            locked: kib("VmLck:"),
            limit: (limit != RLIM_INFINITY).then_some(limit),
            holds_ipc_lock: capabilities >> CAP_IPC_LOCK & 1 == 1,
        }
    }
}
