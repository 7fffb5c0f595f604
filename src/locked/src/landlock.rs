//! Domains of Landlock: the one that a command is started in, so that it can reach what it starts itself and not us; and
//! the one that this process enters when all is open.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    thread,
};

use nix::errno::Errno;

/// `struct landlock_ruleset_attr` as of ABI 6 (Linux 6.12). Kernels that know less take what is longer than theirs as
/// long as the rest is zero.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed_access: u64,
    parent: i32,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct Port {
    allowed_access: u64,
    port: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: u32 = 1;
/// `LANDLOCK_RULE_NET_PORT`.
const NET_PORT: u32 = 2;

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
    let ruleset = match Ruleset::new(0, 0, SCOPE_SIGNAL) {
        Ok(ruleset) => ruleset,
        Err(error) => return (start(), Err(error)),
    };
    let inside = thread::scope(|scope| {
        let enter = || ruleset.enter().map(|()| start());
        // A limit of processes or of locked memory may forbid the thread.
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    match inside {
        Ok(started) => (started, Ok(())),
        Err(error) => (start(), Err(error)),
    }
}

/// The newest version of Landlock's interface that the kernel has.
///
/// # Errors
/// `ENOSYS` where it was built without, `EOPNOTSUPP` where it was started without, or what a seccomp profile answers.
pub fn landlock_version() -> io::Result<u32> {
    // SAFETY: with this flag the call takes neither pointer nor size, and makes nothing.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION) };
    u32::try_from(Errno::result(version)?).map_err(io::Error::other)
}

/// Rules of a domain that nobody has entered yet. Rights and scopes are bits as in the kernel's `landlock.h`.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Rules that deny these rights to files, to TCP ports, and this reach beyond the domain.
    ///
    /// # Errors
    /// When the kernel has no Landlock, or does not know one of the bits.
    pub fn new(files: u64, ports: u64, scopes: u64) -> io::Result<Self> {
        let rules = Attributes { handled_access_fs: files, handled_access_net: ports, scoped: scopes };
        let size = size_of::<Attributes>();
        // SAFETY: the kernel reads `size` bytes of the rules, which outlive the call, and writes nothing.
        let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0_u32) };
        let descriptor = i32::try_from(Errno::result(made)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Leaves these rights to an open file, or to a directory and all below it.
    ///
    /// # Errors
    /// When one of the rights is not denied elsewhere, or is none of a plain file's.
    pub fn allow_below(&self, place: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
        let rule = Beneath { allowed_access: rights, parent: place.as_raw_fd() };
        self.add(PATH_BENEATH, (&raw const rule).cast())
    }

    /// Leaves these rights to a TCP port.
    ///
    /// # Errors
    /// When one of the rights is not denied elsewhere.
    pub fn allow_port(&self, port: u16, rights: u64) -> io::Result<()> {
        let rule = Port { allowed_access: rights, port: port.into() };
        self.add(NET_PORT, (&raw const rule).cast())
    }

    /// `rule` is of the kind that is named.
    fn add(&self, kind: u32, rule: *const libc::c_void) -> io::Result<()> {
        // SAFETY: the kernel reads a structure of the kind that is named, which our two callers hold, and writes nothing.
        let added = unsafe { libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), kind, rule, 0_u32) };
        Errno::result(added).map(drop).map_err(Into::into)
    }

    /// Puts this thread, and what it starts from now on, into the domain, for ever. It must not be able to get new
    /// privileges, which hardening has seen to.
    ///
    /// # Errors
    /// When it is in as many domains as there can be, or a seccomp profile forbids it.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: the call takes a descriptor that is open, and no pointers.
        let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0_u32) };
        Errno::result(answer).map(drop).map_err(Into::into)
    }
}
