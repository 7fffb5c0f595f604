//! The signal that was taken from the kernel and is being handled: a crash meanwhile must not lose it.

use std::{
    cell::UnsafeCell,
    ffi::c_int,
    io,
    mem::{MaybeUninit, offset_of},
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::errno::Errno;

use super::ours;

/// Where the kernel writes a signal: it is there before the call returns.
struct Taken(UnsafeCell<MaybeUninit<libc::signalfd_siginfo>>);

// SAFETY: one thread takes signals, and a handler on whatever thread reads its number alone, as an atomic.
unsafe impl Sync for Taken {}

static TAKEN: Taken = Taken(UnsafeCell::new(MaybeUninit::zeroed()));

fn number() -> &'static AtomicU32 {
    const { assert!(offset_of!(libc::signalfd_siginfo, ssi_signo) == 0) }
    // SAFETY: it begins with its number, is aligned for it, and stays.
    unsafe { AtomicU32::from_ptr(TAKEN.0.get().cast()) }
}

/// Takes the next signal from a signalfd. It counts as taken until [`signal_is_handled`], also for a successor: a crash in
/// between has it handled once more, and never not at all. For one thread at a time.
///
/// # Errors
/// What the kernel says: `WouldBlock` when there is none.
pub fn take_signal(signals: BorrowedFd<'_>) -> io::Result<libc::signalfd_siginfo> {
    let (place, size) = (TAKEN.0.get(), size_of::<libc::signalfd_siginfo>());
    // SAFETY: the kernel writes at most so many bytes, or none where it fails.
    let read = Errno::result(unsafe { libc::read(signals.as_raw_fd(), place.cast(), size) })?;
    if read as usize != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: it is whole: the kernel has just written all of it.
    Ok(unsafe { place.cast::<libc::signalfd_siginfo>().read() })
}

/// What was taken has been handled.
pub fn signal_is_handled() {
    number().store(0, Ordering::SeqCst);
}

/// The signal that the crashed process had taken and not handled, or not said so yet. Once.
#[must_use]
pub fn inherited_signal() -> Option<c_int> {
    let taken = ours().predecessor.as_mut().map(|record| std::mem::take(&mut record.taken))?;
    c_int::try_from(taken).ok().filter(|taken| *taken != 0)
}

/// From the first moment on the signal of the crashed process counts as taken by us, should the start crash too.
pub(super) fn inherit(taken: u64) {
    number().store(taken as u32, Ordering::SeqCst);
}

/// For the handler: the signal that is taken; 0 for none.
pub(super) fn taken() -> u64 {
    number().load(Ordering::SeqCst).into()
}
