//! A process that hangs has a successor, as one that has crashed: timers end it when it does not come back from what it
//! does. An idle process has none that runs.

use std::{
    ffi::{c_int, c_void},
    io,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
};

use super::handler::{self, milliseconds};

/// How much processor time passes between two questions whether the process still takes its events, and two looks at when
/// it last answered.
const ASK: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_secs(5);
/// Processor time without an answer: a hang. What takes longest of all that is done at once, a bundle of a megabyte, takes
/// less than a second.
const SPENT: u64 = 20_000_000_000;
/// How long the process may be awake until it is looked at, and how long until the next look.
const AWAKE: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_secs(10);
/// Looks in a row without an answer, or between which it has done nothing at all: a hang. Who is only kept from running does something whenever
/// it is looked at, since that makes it run.
const STILL: u32 = 3;
/// Processor time, in nanoseconds, that a look itself may take.
const NOTHING: u64 = 2_000_000;

/// What a timer carries, and what [`super::Crash`] has for its code.
pub(super) const SPINS: c_int = 1;
pub(super) const WAITS: c_int = 2;

/// The signal of a look.
pub(super) const HANGS: c_int = libc::SIGPROF;
/// The signal of a question: blocked, so that whoever reads the process's signals finds it among them.
const QUESTION: c_int = libc::SIGVTALRM;

/// There is no such timer.
const NONE: c_int = -1;
static WALL: AtomicI32 = AtomicI32::new(NONE);
/// The thread's processor time at its last answer, and at the last look.
static ANSWERED: AtomicU64 = AtomicU64::new(0);
/// Looks since that answer.
static UNANSWERED: AtomicU32 = AtomicU32::new(0);
static LOOKED: AtomicU64 = AtomicU64::new(0);
/// When the last look was, and how many there were between which nothing was done.
static SINCE: AtomicU64 = AtomicU64::new(0);
static LOOKS: AtomicU32 = AtomicU32::new(0);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// From now on a hang of this thread is treated as a crash: when it takes processor time and does not call [`answer`], or
/// when it neither sleeps ([`asleep`]) nor does anything for a minute. Where there were three crashes within ten minutes
/// a hang is left as it is: what has it hang may hang its successors, too. For the thread that takes the process's events.
///
/// # Errors
/// When the kernel does not have such timers.
pub fn watch_for_hangs() -> io::Result<()> {
    ANSWERED.store(spent(), Ordering::Relaxed);
    handler::handle(HANGS, on_look, libc::SA_RESTART)?;
    SigSet::from(Signal::SIGPROF).thread_unblock()?;
    // The process's time would count a thread that makes an RSA key.
    // SAFETY: the call takes nothing.
    let thread = unsafe { libc::gettid() };
    let question = create(libc::CLOCK_THREAD_CPUTIME_ID, thread, QUESTION, 0)?;
    let look = create(libc::CLOCK_THREAD_CPUTIME_ID, thread, HANGS, SPINS)?;
    let wall = create(libc::CLOCK_MONOTONIC, thread, HANGS, WAITS)?;
    set(question, ASK, ASK);
    set(look, LOOK, LOOK);
    WALL.store(wall, Ordering::Relaxed);
    Ok(())
}

/// The thread takes its events: the answer to the question that came as `SIGVTALRM`.
pub fn answer() {
    ANSWERED.store(spent(), Ordering::Relaxed);
    UNANSWERED.store(0, Ordering::Relaxed);
    GIVEN_UP.store(false, Ordering::Relaxed);
}

/// The thread has something to do.
pub fn awake() {
    let timer = WALL.load(Ordering::Relaxed);
    if timer != NONE {
        LOOKED.store(0, Ordering::Relaxed);
        LOOKS.store(0, Ordering::Relaxed);
        GIVEN_UP.store(false, Ordering::Relaxed);
        set(timer, AWAKE, AGAIN);
    }
}

/// The thread waits for what comes next.
pub fn asleep() {
    let timer = WALL.load(Ordering::Relaxed);
    if timer != NONE {
        set(timer, Duration::ZERO, Duration::ZERO);
    }
}

/// A timer of this thread, `thread`. Not by libc's function, which has a thread for timers that want one.
fn create(clock: libc::clockid_t, thread: libc::pid_t, signal: c_int, carries: c_int) -> Result<c_int, Errno> {
    let mut event = MaybeUninit::<libc::sigevent>::zeroed();
    // SAFETY: all fields are numbers or pointers.
    let event = unsafe { event.assume_init_mut() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_value = libc::sigval { sival_ptr: ptr::without_provenance_mut::<c_void>(carries as usize) };
    event.sigev_notify_thread_id = thread;
    let mut timer: c_int = 0;
    // SAFETY: the kernel reads the event and writes a number.
    let created = unsafe { libc::syscall(libc::SYS_timer_create, clock, ptr::from_ref(event), &raw mut timer) };
    Errno::result(created).map(|_| timer)
}

/// Lets a timer expire after `first`, and from then on each time after `next`; not at all where `first` is zero.
fn set(timer: c_int, first: Duration, next: Duration) {
    let time = |duration: Duration| libc::timespec { tv_sec: duration.as_secs() as libc::time_t, tv_nsec: 0 };
    let times = libc::itimerspec { it_interval: time(next), it_value: time(first) };
    let none = ptr::null_mut::<libc::itimerspec>();
    // SAFETY: the kernel reads two times; a number that is no timer's is refused.
    unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const times, none) };
}

extern "C" fn on_look(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let error = Errno::last_raw();
    look(info, context);
    // Of what was interrupted, which goes on.
    Errno::set_raw(error);
}

fn look(info: *const libc::siginfo_t, context: *const c_void) {
    handler::has_interrupted();
    // SAFETY: the kernel hands it over, and it is valid until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: likewise.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    // SAFETY: whatever was sent has a value, or a number in its place; which are none of ours.
    let carries = unsafe { info.si_value() }.sival_ptr.addr();
    let cause = match (info.si_code, carries as c_int) {
        (libc::SI_TIMER, SPINS) if spins() => SPINS,
        (libc::SI_TIMER, WAITS) if waits() => WAITS,
        _ => return,
    };
    if !GIVEN_UP.load(Ordering::Relaxed) {
        GIVEN_UP.store(!handler::hangs(cause, info, context), Ordering::Relaxed);
    }
}

/// Whether the thread has not answered for long, by its own clock. That may leap, where a virtual machine was stopped
/// while it ran: one look, whose question has not been read yet.
fn spins() -> bool {
    let looks = UNANSWERED.fetch_add(1, Ordering::Relaxed) + 1;
    looks >= STILL && spent().saturating_sub(ANSWERED.load(Ordering::Relaxed)) >= SPENT
}

/// Whether the thread has done nothing between the last looks.
fn waits() -> bool {
    let (now, spent) = (milliseconds(), spent());
    let did = spent.saturating_sub(LOOKED.swap(spent, Ordering::Relaxed));
    // Somebody else may send what looks like a timer's.
    let soon = now.saturating_sub(SINCE.swap(now, Ordering::Relaxed)) < AGAIN.as_millis() as u64 / 2;
    if did > NOTHING || soon {
        LOOKS.store(0, Ordering::Relaxed);
        return false;
    }
    LOOKS.fetch_add(1, Ordering::Relaxed) + 1 >= STILL
}

/// The processor time of this thread in nanoseconds.
fn spent() -> u64 {
    handler::nanoseconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// What the runtime's hooks take each time it wakes and sleeps, at best of many.
    #[test]
    #[ignore = "a time, which says something on an idle machine only"]
    fn a_wake_up_costs_next_to_nothing() {
        const PAIRS: u32 = 1000;
        // Nobody answers here.
        SigSet::from(Signal::SIGVTALRM).thread_block().expect("block the question");
        watch_for_hangs().expect("timers");
        let pairs = || {
            let start = Instant::now();
            (0..PAIRS).for_each(|_| {
                awake();
                asleep();
            });
            start.elapsed() / PAIRS
        };
        let best = (0..200).map(|_| pairs()).min().expect("some");
        println!("awake and asleep: {} ns at best", best.as_nanos());
        assert!(best <= Duration::from_micros(5), "{best:?}");
    }
}
