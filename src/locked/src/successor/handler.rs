//! The handler of a crash: it executes the program anew in the same process. Nothing in here allocates or takes a lock,
//! and it uses nothing of what may be broken but the record, which is checked.

use std::{
    cell::UnsafeCell,
    ffi::{c_char, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use nix::errno::Errno;

use super::{
    PATIENCE, SHARED, VARIABLE, hang,
    record::{NONE, REMEMBERED, Record, TEXT},
    signal, vault,
};

/// The signals of a process that has made a mistake.
const CRASHES: [c_int; 7] =
    [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// They are never blocked in a successor: a fault that is blocked ends the process.
const UNBLOCKED: u64 = {
    let (mut bits, mut at) = (0, 0);
    while at < CRASHES.len() {
        bits |= 1 << (CRASHES[at] - 1);
        at += 1;
    }
    bits
};

/// The stack of the handler: the other one may be what has overflowed. The kernel writes all registers there, some
/// 3.5 KiB on processors with AVX-512.
const STACK: usize = 16 << 10;

#[repr(align(4096))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: the kernel alone uses it, for one handler at a time: it is the alternate stack of one thread.
unsafe impl Sync for Stack {}

static ON: Stack = Stack(UnsafeCell::new([0; STACK]));

/// The arguments, and the environment with a place for the record before its end: arrays of C strings that end with
/// null, and that nobody changes any more.
pub(super) static ARGUMENTS: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());
pub(super) static ENVIRONMENT: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());
/// The place.
pub(super) static PLACE: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

static ENTERED: AtomicBool = AtomicBool::new(false);
/// Whether the stack has what a signal that we ignore interrupted.
static SENT: AtomicBool = AtomicBool::new(false);

/// So many crashes within [`PATIENCE`] leave a hang as it is: with its successors hanging too, the tenth would end the
/// process, and with it what it still serves.
const HANGS_WITHIN: usize = 3;

/// Near to 0, as null with the offset of a field is.
const LOW: u64 = 64 << 10;

/// From now on a crash of this thread, and of those that have an alternate stack of their own as Rust's threads do, is
/// the handler's.
pub(super) fn install() -> Result<(), Errno> {
    let stack = libc::stack_t { ss_sp: ON.0.get().cast(), ss_flags: 0, ss_size: STACK };
    // SAFETY: the stack is there for ever, and no other thread is given it.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })?;
    CRASHES.into_iter().try_for_each(|signal| handle(signal, on_crash, 0))
}

/// What the kernel calls: for the signal, what it says of it, and what was interrupted.
pub(super) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Has a signal handled on the other stack. Nothing comes between; a fault inside of the handler ends the process, as it
/// does without one. The handler only does what may be done in one.
pub(super) fn handle(signal: c_int, handler: Handler, flags: c_int) -> Result<(), Errno> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all fields are numbers, sets or an optional function, of which zeros are one.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags;
    // SAFETY: the set is a valid place.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: the function takes what the flags say, and stays.
    Errno::result(unsafe { libc::sigaction(signal, action, ptr::null_mut()) }).map(drop)
}

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands it over, and it is valid until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: likewise.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    // SAFETY: signals that are sent have a sender; nobody reads it of others.
    let own = info.si_code > 0 || unsafe { info.si_pid() } == process();
    if own {
        // Another thread that comes here waits for its end, or that of a hang that has no successor.
        while ENTERED.swap(true, Ordering::SeqCst) {
            wait();
        }
        succeed(signal, info.si_code, info, context);
    }
    end(signal, own, info.si_code);
}

/// Has a successor for a process that hangs, in the handler of a signal of the hanging thread. Returns when there is none,
/// and whether there may be one later.
pub(super) fn hangs(cause: c_int, info: &libc::siginfo_t, context: &libc::ucontext_t) -> bool {
    let Some(record) = SHARED.get() else { return true };
    if record.crashes_within(PATIENCE, milliseconds()) >= HANGS_WITHIN {
        tell(b"sds-shim: this process hangs, and has crashed or hung 3 times within 10 minutes: leaving it as it is\n");
        return false;
    }
    // Another thread has crashed, and is about to end this one.
    if !ENTERED.swap(true, Ordering::SeqCst) {
        succeed(hang::HANGS, cause, info, context);
        ENTERED.store(false, Ordering::SeqCst);
    }
    false
}

/// From now on the stack has what a signal interrupted that nothing came of.
pub(super) fn has_interrupted() {
    SENT.store(true, Ordering::SeqCst);
}

/// Waits where another thread is in the handler, mostly for ever: what that reads must not change any more, and nothing be
/// started or reaped that it does not know of.
pub(super) fn give_way() {
    while ENTERED.load(Ordering::SeqCst) {
        wait();
    }
}

/// Waits for a tenth of a second, or until a signal comes that is not blocked.
fn wait() {
    // Not `pause`, which the filter of system calls does not allow.
    // SAFETY: there are no entries.
    unsafe { libc::poll(ptr::null_mut(), 0, 100) };
}

/// Wipes what a signal that was only looked at has left on the handler's stack: all registers of what it interrupted. For
/// the thread that the stack belongs to.
pub(crate) fn clear_stack() {
    if SENT.swap(false, Ordering::SeqCst) {
        let words = ON.0.get().cast::<u64>();
        for at in 0..STACK / size_of::<u64>() {
            // SAFETY: the stack is that long.
            let word = unsafe { words.add(at) };
            // SAFETY: no handler runs: it would have interrupted this, and be done.
            unsafe { word.write_volatile(0) };
        }
    }
}

/// What the kernel does without us. A signal that was sent by another process is what that wants.
fn end(signal: c_int, own: bool, code: c_int) {
    let first = process() == 1;
    // The first process of a PID namespace gets no signal from inside without a handler; and ours stays.
    if first && !own {
        SENT.store(true, Ordering::SeqCst);
        return;
    }
    // SAFETY: the default action is no function of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if first && (code <= 0 || [libc::SIGTRAP, libc::SIGSYS].contains(&signal)) {
        // It would be ignored: what was executed goes on after the fault, and `abort` comes here again and waits.
        // SAFETY: nothing of the process is used any more.
        unsafe { libc::_exit(128 + signal) };
    }
    // It is pending until the handler returns. What is a fault comes again by itself.
    // SAFETY: the call takes a number.
    unsafe { libc::raise(signal) };
}

/// Returns when there is to be no successor.
fn succeed(signal: c_int, code: c_int, info: &libc::siginfo_t, context: &libc::ucontext_t) {
    let Some(mut record) = SHARED.get() else { return };
    // A child that shares our memory until it executes its program has all handlers taken away; and another number.
    if record.pid != process() as u64 {
        return;
    }
    let now = milliseconds();
    record.note_crash(now);
    if record.crashes_within(PATIENCE, now) >= REMEMBERED {
        tell(b"sds-shim: 10 crashes within 10 minutes: giving up\n");
        return;
    }
    (record.signal, record.code) = (signal as u64, code as u64);
    (record.offset, record.reached) = place(signal, info, context);
    record.taken = signal::taken();
    vault::fill(&mut record, now);
    let mut text = [0; VARIABLE.len() + TEXT];
    let (name, value) = text.split_at_mut(VARIABLE.len());
    name.copy_from_slice(VARIABLE);
    let Ok(value) = value.try_into() else { return };
    record.write(value);
    let (arguments, environment) = (ARGUMENTS.load(Ordering::SeqCst), ENVIRONMENT.load(Ordering::SeqCst));
    let place = PLACE.load(Ordering::SeqCst);
    if arguments.is_null() || environment.is_null() || place.is_null() {
        return;
    }
    // SAFETY: it is the last but one of the environment's places, and this thread is the only one here.
    unsafe { place.write(text.as_ptr().cast()) };
    for_exec(&record, 0);
    let mask = record.mask & !UNBLOCKED;
    // SAFETY: the kernel reads eight bytes. Not libc's function, which has a larger set.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0_usize, 8_usize) };
    let (image, flags) = (record.image as c_int, libc::AT_EMPTY_PATH);
    // SAFETY: the path and both arrays are C strings that outlive the call, which only returns when it is refused.
    unsafe { libc::syscall(libc::SYS_execveat, image, c"".as_ptr(), arguments, environment, flags) };
    tell(b"sds-shim: crashed or hung, and cannot be restarted in place\n");
    // For a process that hangs and is left as it is.
    for_exec(&record, libc::FD_CLOEXEC);
    vault::close(&record);
}

/// Sets the flags of the descriptors that a successor gets.
pub(super) fn for_exec(record: &Record, flags: c_int) {
    for descriptor in [record.image, record.listener, record.second] {
        if descriptor != NONE {
            // SAFETY: the call takes numbers; a descriptor that is none is refused.
            unsafe { libc::fcntl(descriptor as c_int, libc::F_SETFD, flags) };
        }
    }
}

unsafe extern "C" {
    /// Where the linker has the program begin and end.
    static __ehdr_start: u8;
    static _end: u8;
}

/// Where in the program it was, and what kind of address it reached for: 0 unknown, 1 near to 0, 2 near to the end of the
/// stack, 3 elsewhere. The address itself could be part of a key, and so could what was executed outside of the program.
fn place(signal: c_int, info: &libc::siginfo_t, context: &libc::ucontext_t) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    let (at, stack) = {
        let registers = &context.uc_mcontext.gregs;
        (registers[libc::REG_RIP as usize] as u64, registers[libc::REG_RSP as usize] as u64)
    };
    #[cfg(target_arch = "aarch64")]
    let (at, stack) = (context.uc_mcontext.pc, context.uc_mcontext.sp);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let (at, stack) = (NONE, 0);
    let (begin, end) = ((&raw const __ehdr_start).addr() as u64, (&raw const _end).addr() as u64);
    let offset = if (begin..end).contains(&at) { at - begin } else { NONE };
    if info.si_code <= 0 || ![libc::SIGSEGV, libc::SIGBUS].contains(&signal) {
        return (offset, 0);
    }
    // SAFETY: the kernel has filled it in for these signals.
    let address = unsafe { info.si_addr() }.addr() as u64;
    let reached = match address {
        ..LOW => 1,
        _ if address.abs_diff(stack) < LOW => 2,
        _ => 3,
    };
    (offset, reached)
}

/// One line on standard error, if somebody reads it: a pipe that is full must not keep us.
fn tell(line: &[u8]) {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the kernel reads and writes one entry.
    let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) };
    if ready > 0 {
        // SAFETY: the kernel reads the line.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }
}

/// Since the machine started.
pub(super) fn milliseconds() -> u64 {
    (nanoseconds(libc::CLOCK_BOOTTIME) / 1_000_000).max(1)
}

/// What a clock shows.
pub(super) fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one time.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) fn process() -> libc::pid_t {
    // SAFETY: the call takes nothing.
    unsafe { libc::getpid() }
}
