use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use nix::sys::{inotify::Inotify, signalfd::SignalFd, timerfd::TimerFd};
use tokio::io::{Interest, unix::AsyncFd};

/// What owns a descriptor of the kernel's events.
///
/// # Safety
/// [`AsFd::as_fd`] gives the same descriptor, open on the same file, for as long as the value lives.
pub unsafe trait Events: AsFd {}

// SAFETY: it has one OwnedFd, which no method replaces or closes.
unsafe impl Events for Inotify {}
// SAFETY: the same.
unsafe impl Events for SignalFd {}
// SAFETY: the same.
unsafe impl Events for TimerFd {}

/// A descriptor that the runtime watches for being readable.
pub struct Readable<T: Events>(AsyncFd<Watched<T>>);

struct Watched<T>(T);

impl<T: Events> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<T: Events> Readable<T> {
    /// Registers the descriptor, which must be non-blocking. Call it inside a runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(events: T) -> io::Result<Self> {
        // SAFETY: the descriptor is open and keeps naming the same file until the value is dropped, as its trait says,
        // which AsyncFd does only after it has deregistered it; nobody gets a mutable or owned access to it.
        let registered = unsafe { AsyncFd::register_with_interest(Watched(events), Interest::READABLE) };
        Ok(Self(registered.map_err(|error| io::Error::other(error.to_string()))?))
    }

    /// What owns the descriptor.
    pub fn get(&self) -> &T {
        &self.0.get_ref().0
    }

    /// Waits until the descriptor is readable and `read` does not say [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// What the kernel or `read` says.
    pub async fn read<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.0.async_io(Interest::READABLE, |events| read(&events.0)).await
    }
}
