//! Memory from the kernel, the best kind that it gives us. Nothing in here allocates: the allocator calls it.

use std::{
    ffi::c_void,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
};

use nix::errno::Errno;

/// Guard pages and regions are multiples of this. With larger pages (some aarch64 kernels) a guard would cover what
/// is beside it: there the arena has none.
pub(crate) const PAGE: usize = 4096;

/// What kind of memory the arena is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Private anonymous memory, left out of core dumps and of forked children.
    Anonymous,
    /// `memfd_secret(2)`: no other process can read it, not even one of root, and it is never swapped.
    Secret,
}

/// The call that the kernel refused on the way to secret memory, and its answer.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    /// `memfd_secret` itself.
    Create(Errno),
    /// Giving it a size or mapping it.
    Map(Errno),
}

/// One mapping, readable and writable, never unmapped.
pub(crate) struct Mapping {
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) kind: Kind,
    /// Why it is not secret.
    pub(crate) refusal: Option<Refusal>,
    /// Why it is not locked.
    pub(crate) unlocked: Option<Errno>,
}

// SAFETY: the memory belongs to the process, not to a thread, and the mapping is its only owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Secret memory, else locked memory, else memory. The length is a multiple of [`PAGE`].
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let refusal = match secret(len) {
            Ok(start) => {
                // Secret memory is shared by its nature: a forked child would write into our keys.
                advise(start, len, libc::MADV_DONTFORK);
                return Ok(Self { start, len, kind: Kind::Secret, refusal: None, unlocked: None });
            }
            Err(refusal) => refusal,
        };
        let start = map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        advise(start, len, libc::MADV_DONTDUMP);
        advise(start, len, libc::MADV_DONTFORK);
        let unlocked = lock(start, len).err();
        Ok(Self { start, len, kind: Kind::Anonymous, refusal: Some(refusal), unlocked })
    }

    /// Makes the page at `offset` fault on every access.
    pub(crate) fn guard(&self, offset: usize) {
        // SAFETY: the call takes a number and returns one.
        if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != PAGE as libc::c_long {
            return;
        }
        let page = self.part(offset, PAGE).cast::<c_void>().as_ptr();
        // A guard that the kernel refuses only takes away a second line of defence.
        // SAFETY: the page is inside of the mapping and nobody uses it: guards are set before any part is given out.
        let _ = unsafe { libc::mprotect(page, PAGE, libc::PROT_NONE) };
    }

    /// Gives the memory back, before any part of it was given out.
    pub(crate) fn unmap(self) {
        // SAFETY: the mapping is whole, and whoever owns it by value has given out no part of it.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }

    /// The bytes from `offset` on.
    pub(crate) fn part(&self, offset: usize, len: usize) -> NonNull<[u8]> {
        debug_assert!(offset + len <= self.len);
        // SAFETY: callers stay inside of the mapping.
        let start = unsafe { self.start.add(offset) };
        NonNull::slice_from_raw_parts(start, len)
    }
}

fn secret(len: usize) -> Result<NonNull<u8>, Refusal> {
    // SAFETY: the call takes flags and no pointers.
    let raw = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let raw = Errno::result(raw).map_err(Refusal::Create)?;
    // SAFETY: the kernel has just given us this descriptor; a descriptor fits an i32.
    let file = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    // SAFETY: the descriptor is open; the call takes no pointers.
    let sized = unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) };
    Errno::result(sized).map_err(Refusal::Map)?;
    map(len, libc::MAP_SHARED, file.as_raw_fd()).map_err(Refusal::Map)
}

fn map(len: usize, flags: i32, file: i32) -> Result<NonNull<u8>, Errno> {
    // SAFETY: without an address wish, the kernel places the mapping where nothing else is.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
}

/// Locks each page when it is first touched: a page that was never touched holds nothing to protect.
fn lock(start: NonNull<u8>, len: usize) -> Result<(), Errno> {
    // The plain call, not libc's: sanitizers replace that one with one that does nothing and reports success.
    // SAFETY: the range is one mapping of ours; locking changes no content.
    let locked = unsafe { libc::syscall(libc::SYS_mlock2, start.as_ptr(), len, libc::MLOCK_ONFAULT) };
    Errno::result(locked).map(drop)
}

fn advise(start: NonNull<u8>, len: usize, advice: i32) {
    // What an old kernel does not know is a further line of defence, not a condition.
    // SAFETY: the range is one mapping of ours, and none of the advices used here changes its content.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), len, advice) };
}
