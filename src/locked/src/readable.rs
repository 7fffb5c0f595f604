use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that the runtime watches for being readable.
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Registers the descriptor, which must be non-blocking. Call it inside a runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd is open and keeps naming the same file until it is dropped, which AsyncFd does only
        // after it has deregistered it; nobody outside gets a mutable or owned access to it.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(registered.map_err(|error| io::Error::other(error.to_string()))?))
    }

    /// Waits until the descriptor is readable and `read` does not say [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// What the kernel or `read` says.
    pub async fn read<R>(&self, mut read: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        self.0.async_io(Interest::READABLE, |_| read()).await
    }
}
