//! A filter through which the kernel refuses every system call that a serving process has no use for.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use libc::{
    AF_INET, AF_INET6, AF_UNIX, BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W,
    CLONE_THREAD, EPERM, PROT_EXEC, SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_SET_MODE_FILTER, sock_filter, sock_fprog,
};
use nix::errno::Errno;

/// The names of system calls beside their numbers, so that a profile can be held to be the same.
macro_rules! calls {
    ($(#[$meta:meta])* $numbers:ident, $names:ident: $($call:ident)*) => {
        $(#[$meta])*
        const $numbers: &[libc::c_long] = &[$(libc::$call),*];
        /// Names as in libc, with `SYS_` before them.
        pub const $names: &[&str] = &[$(stringify!($call)),*];
    };
}

calls! {
    /// What a serving process uses, the thread that makes an RSA key and its end included.
    SERVING, SERVING_CALLS:
    // Files, the log, sockets' pieces, and the runtime's own descriptors.
    SYS_read SYS_write SYS_readv SYS_writev SYS_close
    // Flags: the runtime makes descriptors non-blocking, the handler of a crash clears close-on-exec.
    SYS_fcntl SYS_ioctl
    // The standard library asks how much of a file is left before it reads it to its end, and copies descriptors.
    SYS_lseek SYS_dup
    // Followed and requested files, the resolver's, and /proc/self/status for `status`.
    SYS_openat SYS_newfstatat SYS_fstat SYS_statx SYS_readlinkat
    // Whether a file's file system reports changes (`files`).
    SYS_statfs SYS_fstatfs
    // OUTPUT_CERTS: directories that are gone through and cleared, modes and groups of what is written, onto the disk.
    SYS_getdents64 SYS_unlinkat SYS_fchmod SYS_fchown SYS_fsync
    // A socket's file that is made anew gets its mode as it is bound; relative paths in messages.
    SYS_umask SYS_getcwd
    // Followed files.
    SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    // Serving SDS, the Workload API and the admin endpoints, and a socket that is made anew.
    SYS_accept4 SYS_bind SYS_listen SYS_shutdown SYS_getpeername
    // The CA, nameservers, Envoy's admin, the Workload API; whose families are looked at below.
    SYS_connect SYS_recvfrom SYS_sendto SYS_recvmsg SYS_sendmsg SYS_getsockname
    // Who a client is (SO_PEERCRED), errors of a connection, and its options.
    SYS_getsockopt SYS_setsockopt
    // The runtime waits, is woken, and takes signals and the wall clock's jumps as descriptors.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_eventfd2 SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime
    // The timer that notices a hang (`successor::hang`).
    SYS_timer_settime
    // Handlers wait by poll; the standard library at its start, too. Locks and the thread for RSA keys.
    SYS_ppoll SYS_futex
    // libc's sleep, and what goes on with an interrupted one.
    SYS_nanosleep SYS_clock_nanosleep SYS_restart_syscall
    // The arena grows and gives back; libc's own heap; what may not be executed, below.
    SYS_brk SYS_munmap SYS_mremap SYS_madvise
    // Secret memory that the limit has refused is requested again, and a crash needs some for the key.
    SYS_memfd_secret SYS_ftruncate
    // Time, where it is no plain read of memory; this thread's processor time always is a call.
    SYS_clock_gettime SYS_gettimeofday
    // Keys, nonces and jitter.
    SYS_getrandom
    // Who we are: messages about sockets and files, peers of our own user, the pid in `status`.
    SYS_getpid SYS_gettid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid
    // The limits and names in the memory line (`locked::report`); a successor looks at them anew.
    SYS_uname SYS_sysinfo SYS_prlimit64 SYS_prctl
    // libc, for a thread: that of an RSA key, and the one that starts a command.
    SYS_sched_getaffinity SYS_sched_yield SYS_set_robust_list SYS_rseq
    // Handlers of crashes and hangs, and their stacks; a thread's mask.
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack
    // An abort raises its signal by it; other processes are out of its reach by Landlock.
    SYS_tgkill
    // The end of a thread, and of the process.
    SYS_exit SYS_exit_group
}

calls! {
    /// What libc calls here beside them: forms that newer architectures do not have.
    #[cfg(target_arch = "x86_64")]
    NATIVE, OLDER_CALLS:
    // Files that are read, as `openat` and `newfstatat` above; whether the socket's directory may be written.
    SYS_open SYS_stat SYS_lstat SYS_access SYS_readlink
    // OUTPUT_CERTS: generations of files that are made, exchanged and removed; the socket's file.
    SYS_mkdir SYS_unlink SYS_rmdir SYS_rename SYS_symlink SYS_chmod SYS_chown SYS_lchown
    // Waiting, as above, and the time where the kernel maps no clock.
    SYS_epoll_wait SYS_poll SYS_time
}

calls! {
    /// What libc calls in their place elsewhere.
    #[cfg(not(target_arch = "x86_64"))]
    NATIVE, NEWER_CALLS:
    // Whether the socket's directory may be written; OUTPUT_CERTS and the socket's file.
    SYS_faccessat SYS_mkdirat SYS_renameat SYS_symlinkat SYS_fchmodat SYS_fchownat
}

calls! {
    /// What following a command takes.
    FOLLOWING, FOLLOWING_CALLS:
    // Signals are passed on to it, and it is reaped.
    SYS_kill SYS_wait4
}

/// What a start takes beside them: libc's, which says where the thread's number is cleared, and the arena and the process,
/// which are locked in memory, and the timers that see a hang. For a successor, which is bound from its first instruction.
const STARTING: &[libc::c_long] =
    &[libc::SYS_set_tid_address, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_timer_create];

/// Calls that a start takes with one value of one argument: what is inherited is closed for others, and on x86-64 libc
/// says where thread-local data is.
const STARTING_WITH: &[(libc::c_long, u32, u32)] = &[
    (libc::SYS_close_range, 2, libc::CLOSE_RANGE_CLOEXEC),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_arch_prctl, 0, 0x1002), // ARCH_SET_FS
];

const DENY: u32 = SECCOMP_RET_ERRNO | EPERM as u32;
/// What makes libc fall back to `clone`, whose flags can be looked at.
const UNKNOWN: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// From now on, all threads can only make the system calls that serving takes; others fail with `EPERM`, and the
/// kernel's audit log has them where it can. They do not end the process: a call that nobody has foreseen, such as of
/// another libc or file system, must cost what it was for, and not the pod's traffic. There is no
/// way back, and what is started later is bound as well: `following` is whether a command was started before.
///
/// With `image`, a successor can be executed by this descriptor, and start: it is the only one that can be executed, and
/// cannot be closed. A filter does not see the path beside it, and an absolute one would be executed in its place: it
/// takes a Landlock domain that leaves nothing else to execute.
///
/// # Errors
/// When the kernel has no such filters, or not for this architecture.
pub fn restrict_system_calls(following: bool, image: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let image = image.map(|image| image.as_raw_fd().cast_unsigned());
    let program = program(ARCHITECTURE.ok_or(Errno::ENOSYS)?, following, image);
    // gVisor does not know the flag for the log.
    match apply(&program, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => apply(&program, SECCOMP_FILTER_FLAG_TSYNC),
        applied => applied,
    }
}

/// `AUDIT_ARCH_X86_64` or `AUDIT_ARCH_AARCH64` (linux/audit.h): the ELF machine, 64 bits, little endian.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(libc::EM_X86_64 as u32 | 0xC000_0000)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(libc::EM_AARCH64 as u32 | 0xC000_0000)
} else {
    None
};

fn program(architecture: u32, following: bool, image: Option<u32>) -> Vec<sock_filter> {
    /// Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const MACHINE: u32 = 4;
    const ARGUMENTS: u32 = 16;
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let answer = |action| instruction(BPF_RET | BPF_K, action, 0, 0);
    let skip_unless = |value: u32, count| instruction(BPF_JMP | BPF_JEQ | BPF_K, value, 0, count);
    let skip_unless_set = |mask: u32, count| instruction(BPF_JMP | BPF_JSET | BPF_K, mask, 0, count);

    // Numbers of x86-64's x32 form have a bit that none of ours has.
    let right = instruction(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0);
    let mut program = vec![load(MACHINE), right, answer(DENY)];
    program.push(load(NUMBER));
    for call in if following { FOLLOWING } else { &[] } {
        program.extend([skip_unless(*call as u32, 1), answer(SECCOMP_RET_ALLOW)]);
    }
    if let Some(image) = image {
        for call in STARTING {
            program.extend([skip_unless(*call as u32, 1), answer(SECCOMP_RET_ALLOW)]);
        }
        for (call, argument, value) in STARTING_WITH {
            program.extend([skip_unless(*call as u32, 4), load(ARGUMENTS + argument * 8)]);
            program.extend([skip_unless(*value, 1), answer(SECCOMP_RET_ALLOW), answer(DENY)]);
        }
        program.extend([skip_unless(libc::SYS_execveat as u32, 6), load(ARGUMENTS), skip_unless(image, 3)]);
        program.extend([load(ARGUMENTS + 4 * 8), skip_unless(libc::AT_EMPTY_PATH as u32, 1)]);
        program.extend([answer(SECCOMP_RET_ALLOW), answer(DENY)]);
        // What is opened next would get its number.
        program.extend([skip_unless(libc::SYS_close as u32, 4), load(ARGUMENTS), skip_unless(image, 1)]);
        program.extend([answer(DENY), answer(SECCOMP_RET_ALLOW)]);
    }
    program.extend([skip_unless(libc::SYS_clone3 as u32, 1), answer(UNKNOWN)]);
    // Threads, no processes: RSA keys are made in one.
    program.extend([skip_unless(libc::SYS_clone as u32, 4), load(ARGUMENTS)]);
    program.extend([skip_unless_set(CLONE_THREAD as u32, 1), answer(SECCOMP_RET_ALLOW), answer(DENY)]);
    // No signals, but the question whether a process may be signalled: `sds::admission` asks it of a peer.
    program.extend([skip_unless(libc::SYS_kill as u32, 4), load(ARGUMENTS + 8)]);
    program.extend([skip_unless(0, 1), answer(SECCOMP_RET_ALLOW), answer(DENY)]);
    // Nothing new that can be executed.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        program.extend([skip_unless(call as u32, 4), load(ARGUMENTS + 2 * 8)]);
        program.extend([skip_unless_set(PROT_EXEC as u32, 1), answer(DENY), answer(SECCOMP_RET_ALLOW)]);
    }
    program.extend([skip_unless(libc::SYS_socket as u32, 8), load(ARGUMENTS)]);
    for family in [AF_UNIX, AF_INET, AF_INET6] {
        program.extend([skip_unless(family as u32, 1), answer(SECCOMP_RET_ALLOW)]);
    }
    program.push(answer(DENY));
    search(&ranges(SERVING.iter().chain(NATIVE)), &mut program);
    program
}

/// Where what the filter answers changes, from 0 on: neighbours share a range.
fn ranges<'a>(calls: impl Iterator<Item = &'a libc::c_long>) -> Vec<(u32, u32)> {
    let mut calls: Vec<_> = calls.map(|call| *call as u32).collect();
    calls.sort_unstable();
    let mut ranges = vec![(0, DENY)];
    for call in calls {
        ranges.pop_if(|(start, _)| *start == call);
        if ranges.last().is_none_or(|(_, answer)| *answer == DENY) {
            ranges.push((call, SECCOMP_RET_ALLOW));
        }
        ranges.push((call + 1, DENY));
    }
    ranges
}

/// Halves them until one is left: when the filter is installed, the kernel goes through it once for each system call that
/// there is, which took more than the rest of the sandbox while they were one long list.
fn search(ranges: &[(u32, u32)], program: &mut Vec<sock_filter>) {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    match (lower, upper) {
        ([], [(_, answer), ..]) => program.push(instruction(BPF_RET | BPF_K, *answer, 0, 0)),
        (_, [(start, _), ..]) => {
            let choice = program.len();
            program.push(instruction(BPF_JMP | BPF_JGE | BPF_K, *start, 0, 0));
            search(lower, program);
            // Half of twice the calls, with an instruction for each range and each choice among them: less than 256.
            program[choice].jt = (program.len() - choice - 1) as u8;
            search(upper, program);
        }
        (_, []) => {}
    }
}

const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn apply(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions, which outlive the call, and writes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match Errno::result(answer)? {
        0 => Ok(()),
        // The number of a thread that has another filter.
        _ => Err(Errno::EBUSY.into()),
    }
}

#[cfg(test)]
mod tests;
