//! The domain that a command is started in, so that it can reach what it starts itself and not us.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use nix::errno::Errno;

/// `struct landlock_ruleset_attr` as of ABI 6 (Linux 6.12). Kernels that know less refuse what is longer than theirs.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_SCOPE_SIGNAL`: who is inside signals nobody outside. That whoever is in a domain neither traces nor takes
/// descriptors of anybody outside holds for each domain.
const SCOPE_SIGNAL: u64 = 1 << 1;

/// More than the few system calls take that run on it: posix_spawn brings a stack of its own.
const STACK: usize = 64 << 10;

/// Calls `start` so that what it starts is inside such a domain and this process is not. Where that cannot be had, it
/// is called all the same; whether it was had comes with its answer.
///
/// A domain binds the thread that enters it and what that thread starts, for ever: so it is a thread that exists for
/// this alone. Until it is gone, which is at once, the command could signal the thread, if it had guessed its number.
pub(crate) fn apart<T: Send>(start: impl Fn() -> T + Sync) -> (T, Result<(), io::Error>) {
    let ruleset = match ruleset() {
        Ok(ruleset) => ruleset,
        Err(error) => return (start(), Err(error)),
    };
    let inside = thread::scope(|scope| {
        let enter = || restrict(&ruleset).map(|()| start());
        // A limit of processes or of locked memory may forbid the thread.
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    match inside {
        Ok(started) => (started, Ok(())),
        Err(error) => (start(), Err(error)),
    }
}

fn ruleset() -> io::Result<OwnedFd> {
    let rules = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_SIGNAL };
    let size = size_of::<Ruleset>();
    // SAFETY: the kernel reads `size` bytes of the ruleset, which outlives the call, and writes nothing.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0_u32) };
    let descriptor = i32::try_from(Errno::result(made)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Puts this thread into the domain. It must not be able to get new privileges, which hardening has seen to.
fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor that is open, and no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    Errno::result(answer)?;
    Ok(())
}
