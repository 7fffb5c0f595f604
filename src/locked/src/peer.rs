//! Who is at the other end of a Unix socket, as a descriptor that no other process can take over.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::errno::Errno;

/// The process that has connected (Linux 6.5).
///
/// # Errors
/// `ENOPROTOOPT` from kernels that do not know it, and what they say where the process is gone.
pub fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut descriptor: libc::c_int = -1;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, name, place) = (libc::SOL_SOCKET, libc::SO_PEERPIDFD, (&raw mut descriptor).cast());
    // SAFETY: the kernel writes at most `size` bytes to each of two variables that outlive the call.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut size) };
    Errno::result(answer)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
