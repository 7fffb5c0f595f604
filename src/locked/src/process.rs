//! What is done to the process as a whole.

use std::{
    env,
    fs::File,
    io::{self, Read as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit},
    },
};

use crate::{arena::lock, child::Inherited, mapping::Refusal, report::Counting, successor};

/// Under a lock of future mappings, each of them fails once the limit is reached. A child that is
/// started must still fit.
pub(crate) const HEADROOM: u64 = 144 << 10;

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
    /// Nothing, whatever the kernel answered ([`on_gvisor`]).
    Pretended,
}

static OUTCOME: Mutex<(ProcessLock, Option<Counting>)> = Mutex::new((ProcessLock::NotAsked, None));

/// Locks the whole process in memory, as far as the limit allows. Call it when everything is mapped and before any
/// other thread exists. When it is refused, nothing is half done: whatever holds a key is in secret memory, or in the arena.
pub fn lock_process() -> ProcessLock {
    keep_libc_small();
    let status = KernelStatus::read();
    let counting = counting(&status);
    let fits = status.holds_ipc_lock || status.limit.is_none_or(|limit| status.mapped + HEADROOM <= limit);
    // Future mappings alone could be locked without the present ones fitting, but then each would fail.
    let (flags, success) = if fits {
        (libc::MCL_CURRENT | libc::MCL_FUTURE, ProcessLock::Whole)
    } else {
        (libc::MCL_CURRENT, ProcessLock::Present)
    };
    // Each page from when it is first touched: before that it holds nothing of ours, and to touch all of the program
    // would take a tenth of a start, and a third of what the process has in memory.
    // The plain call, not libc's: sanitizers replace that one with one that does nothing and reports success.
    // SAFETY: the call takes no pointers and changes no content.
    let locked = unsafe { libc::syscall(libc::SYS_mlockall, flags | libc::MCL_ONFAULT) };
    let outcome = Errno::result(locked).map_or_else(ProcessLock::Refused, |_| success);
    *OUTCOME.lock().unwrap_or_else(PoisonError::into_inner) = (outcome, counting);
    outcome
}

/// Where secret memory counts for the process, it is among what is locked from the moment when it is mapped.
fn counting(status: &KernelStatus) -> Option<Counting> {
    let arena = lock();
    if matches!(arena.secrets.refusal(), Some(Refusal::Charge { .. })) {
        return Some(Counting::User);
    }
    let (secret, locked) = (arena.secrets.usage().charged as u64, arena.locked() as u64);
    match status.locked? {
        _ if secret == 0 => None,
        all if all >= locked + secret => Some(Counting::Process),
        all if all >= locked => Some(Counting::User),
        // Not every kernel tells.
        _ => None,
    }
}

pub(crate) fn outcome() -> (ProcessLock, Option<Counting>) {
    *OUTCOME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What other processes of our user, a core dump, a child or a file of ours could tell: nothing. No core dumps, no
/// reading of our memory, no new privileges, files for us alone, no descriptor left to a child. Call it first in
/// `main`. What a child should have back is returned; drop it when there will be none.
///
/// # Errors
/// When the kernel refuses one of them.
pub fn harden_process() -> io::Result<Inherited> {
    // SAFETY: the call takes no pointers. Not nix's call, to which 2, closed to all but root, is the same as 1.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    WAS_OPEN.store(dumpable == 1, Ordering::Relaxed);
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let status = KernelStatus::read();
    ON_GVISOR.store(status.on_gvisor(), Ordering::Relaxed);
    let inherited = Inherited::take(&BACKTRACES, successor::inherit())?;
    close_inherited_on_exec();
    forgo_variables(&status);
    Ok(inherited)
}

static ON_GVISOR: AtomicBool = AtomicBool::new(false);

/// Whether the kernel is gVisor's, as far as [`harden_process`] has found out: it accepts memory locks but does not
/// pass them on to its host, and never reports that the clock was set.
pub fn on_gvisor() -> bool {
    ON_GVISOR.load(Ordering::Relaxed)
}

static WAS_OPEN: AtomicBool = AtomicBool::new(false);

/// Whether another process of our user could have attached to this one before [`harden_process`] closed it: it can stay
/// attached. It could not if our user may not read the program, which the kernel then closes from its first instruction.
pub fn was_open_to_others() -> bool {
    WAS_OPEN.load(Ordering::Relaxed)
}

const BACKTRACES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// A backtrace needs more memory than the arena may have; and when the arena is full, the one that the standard
/// library wants to print needs memory itself, and waits for itself for ever instead of ending the process. And what was
/// handed on by a process that has crashed is for nobody else.
#[expect(clippy::disallowed_methods, reason = "this is the only thread, so nobody else reads the environment")]
fn forgo_variables(status: &KernelStatus) {
    if status.threads == 1 {
        for name in BACKTRACES.into_iter().chain([successor::NAME]) {
            // SAFETY: this is the only thread, so nobody else reads the environment.
            unsafe { env::remove_var(name) };
        }
    }
}

/// Kernels before 5.11 cannot do it; there, inherited descriptors stay as whoever started us wanted them.
fn close_inherited_on_exec() {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: the call takes no pointers, and closes nothing: it sets a flag.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) };
}

/// glibc's own heap serves only glibc, which needs little. Without this, a second thread would reserve 64 MiB, and a
/// large block would be a mapping, which fails when the limit is near.
fn keep_libc_small() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, 16 << 20),
        (libc::M_TOP_PAD, 0),
        (libc::M_TRIM_THRESHOLD, 64 << 10),
    ] {
        // SAFETY: mallopt takes numbers, and no other thread allocates meanwhile.
        let _ = unsafe { libc::mallopt(option, value) };
    }
    // What glibc took before main, 128 KiB, is empty but for its first blocks.
    #[cfg(target_env = "gnu")]
    // SAFETY: it gives unused memory back, and takes no pointers.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// What the kernel says of the process, in bytes.
pub(crate) struct KernelStatus {
    pub(crate) mapped: u64,
    /// None where the kernel does not tell.
    pub(crate) locked: Option<u64>,
    /// The soft limit of locked memory; none is no limit.
    pub(crate) limit: Option<u64>,
    pub(crate) holds_ipc_lock: bool,
    threads: u64,
}

impl KernelStatus {
    /// Without /proc all is zero.
    pub(crate) fn read() -> Self {
        const CAP_IPC_LOCK: u64 = 14;
        let text = read_whole("/proc/self/status").unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let told = |name: &str| field(name).trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024);
        let capabilities = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
        Self {
            mapped: told("VmSize:").unwrap_or(0),
            locked: told("VmLck:"),
            limit: (limit != RLIM_INFINITY).then_some(limit),
            holds_ipc_lock: capabilities >> CAP_IPC_LOCK & 1 == 1,
            threads: field("Threads:").parse().unwrap_or(0),
        }
    }

    /// Linux tells what is locked since 2.6, and gVisor does not.
    fn on_gvisor(&self) -> bool {
        self.mapped > 0 && self.locked.is_none()
    }
}

/// A file of /proc, which does not say how long it is. In one piece, unless the process is in hundreds of groups.
fn read_whole(path: &str) -> io::Result<Vec<u8>> {
    const PIECE: usize = 4096;
    let mut file = File::open(path)?;
    let mut content = vec![0; PIECE];
    let read = file.read(&mut content)?;
    content.truncate(read);
    if read == PIECE {
        file.take(1 << 20).read_to_end(&mut content)?;
    }
    Ok(content)
}
