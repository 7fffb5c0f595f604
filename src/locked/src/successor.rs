//! A crash that costs nothing: the handler executes the program anew in place, so that the process keeps its number and
//! its children, and hands on the sockets that are listened on and whom the process follows.

mod crash;
mod handler;
mod hang;
mod record;
mod signal;
mod vault;

use std::{
    ffi::{CString, c_char},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, process::ExitStatusExt as _},
    },
    process::ExitStatus,
    ptr,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{signal::SigSet, stat::Mode},
    unistd::Pid,
};

pub use crash::{Crash, Reached};
pub(crate) use handler::clear_stack;
use handler::{ARGUMENTS, ENVIRONMENT, PLACE};
pub use hang::{answer, asleep, awake, watch_for_hangs};
use record::{Copies, NONE, Record, checksum_of};
pub use signal::{inherited_signal, signal_is_handled, take_signal};
use vault::Vault;
pub use vault::{hand_on_key, hand_on_no_key, inherited_key};

/// The variable in which a successor finds the record.
pub(crate) const NAME: &str = "SDS_SHIM_SUCCESSOR";
const VARIABLE: &[u8; 19] = b"SDS_SHIM_SUCCESSOR=";
/// The time, in milliseconds, within which the tenth crash ends the process.
const PATIENCE: u64 = 10 * 60 * 1000;

/// What the handler hands on; empty when a crash is to end the process.
static SHARED: Copies = Copies::new();
/// The same for those who change it.
static OURS: Mutex<Ours> =
    Mutex::new(Ours { record: None, predecessor: None, taken: None, vault: None, start: 0, paused: false });

struct Ours {
    record: Option<Record>,
    predecessor: Option<Record>,
    taken: Option<Taken>,
    vault: Option<Vault>,
    /// The checksum of arguments and environment.
    start: u64,
    /// Whether a crash ends the process for now.
    paused: bool,
}

/// Which of the sockets that are listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The one that is always there.
    First,
    /// One beside it.
    Second,
}

impl Listener {
    /// Its descriptor, and device and inode of its file.
    fn fields(self, record: &mut Record) -> (&mut u64, &mut u64, &mut u64) {
        match self {
            Self::First => (&mut record.listener, &mut record.device, &mut record.inode),
            Self::Second => (&mut record.second, &mut record.second_device, &mut record.second_inode),
        }
    }
}

fn ours() -> MutexGuard<'static, Ours> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes what is handed on, if anything is.
fn change(change: impl FnOnce(&mut Record)) {
    let mut ours = ours();
    let Ours { record: Some(record), paused, .. } = &mut *ours else { return };
    change(record);
    if !*paused {
        SHARED.set(record);
    }
}

/// The last crash of this process, whose successor we are.
#[must_use]
pub fn last_crash() -> Option<Crash> {
    let record = ours().predecessor?;
    Some(Crash {
        crashes: record.crashes,
        signal: record.signal as i32,
        code: record.code as i32,
        offset: (record.offset != NONE).then_some(record.offset),
        reached: match record.reached {
            1 => Some(Reached::Null),
            2 => Some(Reached::Stack),
            3 => Some(Reached::Elsewhere),
            _ => None,
        },
    })
}

/// A socket that the crashed process listened on, with device and inode of its file. Once.
#[must_use]
pub fn inherited_listener(which: Listener) -> Option<(OwnedFd, (u64, u64))> {
    let mut ours = ours();
    let (socket, device, inode) = which.fields(ours.predecessor.as_mut()?);
    let (descriptor, identity) = (i32::try_from(std::mem::replace(socket, NONE)).ok()?, (*device, *inode));
    let (mut listens, mut size): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    let (level, place) = (libc::SOL_SOCKET, (&raw mut listens).cast());
    // SAFETY: the kernel writes at most `size` bytes to each of two variables that outlive the call; a descriptor that is
    // none is refused.
    let asked = unsafe { libc::getsockopt(descriptor, level, libc::SO_ACCEPTCONN, place, &raw mut size) };
    if asked < 0 || listens == 0 {
        return None;
    }
    // SAFETY: it is open, the process that was before us had it for this alone, and it is taken once.
    Some((unsafe { OwnedFd::from_raw_fd(descriptor) }, identity))
}

/// The command that the crashed process had started, and how it ended if that was known.
#[must_use]
pub fn inherited_command() -> Option<(Pid, Option<ExitStatus>)> {
    let record = ours().predecessor?;
    let pid = i32::try_from(record.command).ok().filter(|pid| *pid > 0)?;
    let ended = (record.ended != NONE).then(|| ExitStatus::from_raw(record.ended as i32));
    Some((Pid::from_raw(pid), ended))
}

/// From now on a crash of this process does not end it: it executes itself anew, with the sockets that it listens on. The
/// tenth crash within ten minutes ends it all the same, and so does a crash after [`stand_down`].
///
/// # Errors
/// When the kernel refuses a part of it: a crash then ends the process.
pub fn stand_by() -> io::Result<()> {
    let mut ours = ours();
    if let Some(record) = &mut ours.record {
        record.mask = blocked()?;
        SHARED.set(record);
        return Ok(());
    }
    let taken = ours.taken.ok_or(io::ErrorKind::Unsupported)?;
    let (image, (name, name_end)) = (open_image()?, process_name());
    let record = Record {
        pid: handler::process() as u64,
        image: image as u64,
        listener: NONE,
        second: NONE,
        ended: NONE,
        start: ours.start,
        umask: u64::from(taken.umask.bits()),
        core: taken.core.0,
        core_most: taken.core.1,
        blocked: taken.blocked,
        mask: blocked()?,
        name,
        name_end,
        ..Record::default()
    };
    handler::install()?;
    SHARED.set(&record);
    ours.record = Some(record);
    Ok(())
}

/// From now on a crash ends the process: it is about to end.
pub fn stand_down() {
    ours().record = None;
    SHARED.clear();
}

/// The command is being started: until its number is known, a crash ends the process. A successor would start another.
pub(crate) fn pause() {
    ours().paused = true;
    SHARED.clear();
    handler::give_way();
}

/// A socket that is listened on, and device and inode of its file. It stays open.
pub fn hand_on_listener(which: Listener, socket: BorrowedFd<'_>, identity: (u64, u64)) {
    change(|record| {
        let (place, device, inode) = which.fields(record);
        (*place, (*device, *inode)) = (socket.as_raw_fd() as u64, identity);
    });
}

/// The command that was started.
pub(crate) fn hand_on_command(pid: Pid) {
    ours().paused = false;
    change(|record| record.command = pid.as_raw() as u64);
}

/// For how long from now on the CA is not to be called, also by a successor, and how often it has failed, in the caller's
/// words.
pub fn hand_on_patience(wait: Duration, failures: u64) {
    let next_attempt = handler::milliseconds().saturating_add(wait.as_millis() as u64);
    change(|record| (record.next_attempt, record.failures) = (next_attempt, failures));
}

/// For how long the crashed process would not have called the CA, and how often that had failed.
#[must_use]
pub fn inherited_patience() -> (Duration, u64) {
    let (until, failures) = ours().predecessor.map_or((0, 0), |record| (record.next_attempt, record.failures));
    (Duration::from_millis(until.saturating_sub(handler::milliseconds())), failures)
}

/// The descriptor that a successor is executed by, where a crash has one. It stays open.
#[must_use]
pub fn image() -> Option<BorrowedFd<'static>> {
    let image = ours().record?.image as i32;
    // SAFETY: it was opened for this, and nobody closes it.
    Some(unsafe { BorrowedFd::borrow_raw(image) })
}

/// What the process has denied itself for ever, in the caller's words; not 0.
pub fn hand_on_confinement(confined: u64) {
    change(|record| record.confined = confined);
}

/// What the crashed process had denied itself, which binds us as well.
#[must_use]
pub fn inherited_confinement() -> Option<u64> {
    ours().predecessor.map(|record| record.confined).filter(|confined| *confined != 0)
}

/// Before a child is reaped: from then on only we know how it ended.
pub(crate) fn before_reaping() {
    handler::give_way();
}

/// How it ended.
pub(crate) fn hand_on_end(pid: libc::pid_t, status: i32) {
    change(|record| {
        if record.command == pid as u64 {
            record.ended = status as u64 & 0xFFFF_FFFF;
        }
    });
}

/// What hardening took, for a command that is still to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) umask: Mode,
    pub(crate) core: (libc::rlim_t, libc::rlim_t),
    /// Signals, as the kernel has them.
    pub(crate) blocked: u64,
}

/// Keeps what a successor's command should have.
pub(crate) fn keep(taken: Taken) {
    ours().taken = Some(taken);
}

/// What the crashed process has handed on, if there was one. For the start of the process, before any other thread: from
/// here on a crash counts.
pub(crate) fn inherit() -> Option<Taken> {
    let (inherited, start) = copy_environment();
    ours().start = start;
    let mut record = inherited.filter(|record| record.pid == handler::process() as u64)?;
    // Whatever may be started before hardening sees to all descriptors, or where it cannot.
    handler::for_exec(&record, libc::FD_CLOEXEC);
    let unchanged = record.start == start;
    let vault = Vault::take(&mut record, unchanged);
    record.start = start;
    restore_name(&record);
    let mut ours = ours();
    ours.vault = vault;
    ours.predecessor = Some(record);
    // Until the socket is served again, what was handed on to us is what we hand on.
    ours.record = Some(record);
    signal::inherit(record.taken);
    SHARED.set(&record);
    drop(ours);
    if handler::install().is_err() {
        stand_down();
    }
    Some(Taken {
        umask: Mode::from_bits_truncate(record.umask as libc::mode_t),
        core: (record.core, record.core_most),
        blocked: record.blocked,
    })
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// Copies the arguments and the environment as they were handed to the process, for its successor, and takes the record
/// out. Both stay for ever. Answers with the record, and with the checksum of all else.
#[expect(clippy::disallowed_methods, reason = "handed on as they are")]
fn copy_environment() -> (Option<Record>, u64) {
    let words = std::env::args_os().filter_map(|word| CString::new(word.into_vec()).ok());
    let mut arguments: Vec<*const c_char> = words.map(|word| word.into_raw().cast_const()).collect();
    let (mut environment, mut record) = (Vec::new(), None);
    let text = |entry: &*const c_char| {
        // SAFETY: each is a C string that stays for as long as the process.
        unsafe { std::ffi::CStr::from_ptr(*entry) }.to_bytes_with_nul()
    };
    // SAFETY: this is the only thread, so nobody changes the environment meanwhile.
    let mut next = unsafe { environ };
    while !next.is_null() {
        // SAFETY: it is one of an array of pointers that ends with null.
        let entry = unsafe { next.read() };
        if entry.is_null() {
            break;
        }
        match text(&entry).strip_prefix(VARIABLE) {
            Some(value) => record = std::str::from_utf8(&value[..value.len() - 1]).ok().and_then(Record::read),
            None => environment.push(entry),
        }
        // SAFETY: this was not the last.
        next = unsafe { next.add(1) };
    }
    let start = checksum_of(arguments.iter().chain(&environment).flat_map(text));
    arguments.push(ptr::null());
    let place = environment.len();
    environment.extend([ptr::null(); 2]);
    let environment = Box::leak(environment.into_boxed_slice());
    PLACE.store(&raw mut environment[place], Ordering::SeqCst);
    ENVIRONMENT.store(environment.as_mut_ptr(), Ordering::SeqCst);
    ARGUMENTS.store(Box::leak(arguments.into_boxed_slice()).as_mut_ptr(), Ordering::SeqCst);
    (record, start)
}

/// The program itself, by a descriptor that stays: the file may be replaced meanwhile.
fn open_image() -> Result<i32, Errno> {
    // SAFETY: the path is a C string.
    Errno::result(unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })
}

/// A set of signals as libc has it.
pub(crate) fn signal_set(bits: u64) -> SigSet {
    let mut set = *SigSet::empty().as_ref();
    // SAFETY: the kernel's set is the first eight bytes of libc's.
    unsafe { (&raw mut set).cast::<u64>().write(bits) };
    // SAFETY: it is a whole set of libc's, with some bits set.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// The signals that are blocked now.
pub(crate) fn blocked() -> Result<u64, Errno> {
    let mut set = 0_u64;
    let none = ptr::null::<u64>();
    // SAFETY: the kernel writes eight bytes.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, none, &raw mut set, 8_usize) };
    Errno::result(got).map(|_| set)
}

/// The name that the kernel has for the process, 15 bytes at the most.
fn process_name() -> (u64, u64) {
    let mut name = [0_u64; 2];
    // SAFETY: the kernel writes 16 bytes at the most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    (name[0], name[1])
}

fn restore_name(record: &Record) {
    let name = [record.name, record.name_end];
    // SAFETY: the kernel reads 16 bytes at the most, up to a zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
