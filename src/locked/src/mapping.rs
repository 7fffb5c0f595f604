//! Memory from the kernel. Nothing in here allocates: the allocator calls it.

use std::{
    ffi::c_void,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
};

use nix::errno::Errno;

/// The size of pages on x86-64, and on most kernels elsewhere.
const USUAL: usize = 4096;

/// The size of the kernel's pages in bytes: 4 KiB, or 16 or 64 KiB on some aarch64 kernels.
pub(crate) fn page_size() -> usize {
    #[cfg(feature = "dump")]
    if let Some(size) = simulated_page_size() {
        return size;
    }
    if cfg!(target_arch = "x86_64") {
        return USUAL;
    }
    // SAFETY: the call takes a number and returns one.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(USUAL)
}

/// For tests: larger pages than the kernel has, of which all that is mapped is to be multiples.
#[cfg(feature = "dump")]
fn simulated_page_size() -> Option<usize> {
    // Nothing here may allocate, as `std::env::var` would.
    // SAFETY: the name ends with a zero; tests change no environment while others read it.
    let value = unsafe { libc::getenv(c"SIMULATED_PAGE_SIZE".as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the value is a string of the environment.
    let value = unsafe { std::ffi::CStr::from_ptr(value) };
    value.to_str().ok()?.parse().ok()
}

/// Anonymous memory, readable and writable, left out of core dumps and of forked children; locked where the limit
/// allows it. Never unmapped, unless [`Mapping::unmap`] is called.
pub(crate) struct Mapping {
    pub(crate) start: NonNull<u8>,
    /// What was asked for, in whole pages.
    pub(crate) len: usize,
    /// The size of these pages, which that of guards is as well.
    pub(crate) page: usize,
    /// Why it is not locked.
    pub(crate) unlocked: Option<Errno>,
}

// SAFETY: the memory belongs to the process, not to a thread, and the mapping is its only owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// At least so many bytes.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let page = page_size();
        let len = len.checked_next_multiple_of(page).ok_or(Errno::ENOMEM)?;
        let start = map(None, len, libc::PROT_READ | libc::PROT_WRITE, ANONYMOUS, -1)?;
        advise(start, len, libc::MADV_DONTDUMP);
        advise(start, len, libc::MADV_DONTFORK);
        // Where huge pages are always used, the first touch would bring in 2 MiB.
        advise(start, len, libc::MADV_NOHUGEPAGE);
        let unlocked = lock(start, len).err();
        Ok(Self { start, len, page, unlocked })
    }

    /// Makes the page at `offset` fault on every access.
    pub(crate) fn guard(&self, offset: usize) {
        let page = self.part(offset, self.page).cast::<c_void>().as_ptr();
        // A guard that the kernel refuses only takes away a second line of defence.
        // SAFETY: the page is inside of the mapping and nobody uses it: guards are set before any part is given out.
        let _ = unsafe { libc::mprotect(page, self.page, libc::PROT_NONE) };
    }

    /// Gives the memory back, before any part of it was given out.
    pub(crate) fn unmap(self) {
        unmap(self.start, self.len);
    }

    /// The bytes from `offset` on.
    pub(crate) fn part(&self, offset: usize, len: usize) -> NonNull<[u8]> {
        debug_assert!(offset + len <= self.len);
        // SAFETY: callers stay inside of the mapping.
        let start = unsafe { self.start.add(offset) };
        NonNull::slice_from_raw_parts(start, len)
    }
}

/// What kept the kernel from giving secret memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `memfd_secret` itself was refused.
    Create(Errno),
    /// Giving it a size or mapping it was: before Linux counted pages by user, the limit is looked at here.
    Map(Errno),
    /// So many pages of those that are needed could be had: the others are over the limit, which counts for all
    /// processes of the user together.
    Charge { had: usize, wanted: usize },
}

/// A file of secret memory (`memfd_secret(2)`), mapped between two pages that fault. Its descriptor is closed: who may
/// trace a process could take it from there and map the file. All its pages are there and charged for, so that no use
/// of it can fail; they are given back when all of it is unmapped.
pub(crate) struct SecretMapping {
    reserved: NonNull<u8>,
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
}

// SAFETY: as for `Mapping`.
unsafe impl Send for SecretMapping {}

impl SecretMapping {
    /// So many bytes, a multiple of the page size.
    pub(crate) fn new(len: usize) -> Result<Self, Refusal> {
        let page = page_size();
        // SAFETY: the call takes flags and no pointers.
        let raw = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let raw = Errno::result(raw).map_err(Refusal::Create)?;
        // SAFETY: the kernel has just given us this descriptor; a descriptor fits an i32.
        let file = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        // SAFETY: the descriptor is open; the call takes no pointers.
        let sized = unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) };
        Errno::result(sized).map_err(Refusal::Map)?;
        let reserved = map(None, len + 2 * page, libc::PROT_NONE, ANONYMOUS, -1).map_err(Refusal::Map)?;
        // SAFETY: the reservation is longer than a page.
        let place = unsafe { reserved.add(page) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let start = map(Some(place), len, access, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd())
            .inspect_err(|_| unmap(reserved, len + 2 * page))
            .map_err(Refusal::Map)?;
        let mapping = Self { reserved, start, len };
        // Secret memory is shared by its nature: a forked child would write into our keys.
        advise(start, len, libc::MADV_DONTFORK);
        match mapping.charge(page) {
            had if had == len / page => Ok(mapping),
            had => {
                mapping.unmap();
                Err(Refusal::Charge { had, wanted: len / page })
            }
        }
    }

    /// Brings in page after page by a system call, which fails where a store would end the process: since Linux
    /// 6.12.113 and 6.1.192 ("mm/secretmem: properly account locked pages") pages count when they are first touched,
    /// and one too many is SIGBUS. Returns how many there are.
    fn charge(&self, page: usize) -> usize {
        let had = (0..self.len / page).take_while(|index| {
            // SAFETY: the page is inside of the mapping.
            let first = unsafe { self.start.add(index * page) };
            // SAFETY: the kernel writes one byte there, or reports that it cannot.
            let written = unsafe { libc::getrandom(first.as_ptr().cast(), 1, 0) };
            written == 1
        });
        let had = had.count();
        for index in 0..had {
            // SAFETY: the page is inside of the mapping.
            let first = unsafe { self.start.add(index * page) };
            // SAFETY: the kernel has just brought the page in.
            unsafe { first.write(0) };
        }
        had
    }

    /// Gives it back with all that is charged for it. Nobody may use any part of it.
    pub(crate) fn unmap(&self) {
        unmap(self.reserved, self.len + 2 * page_size());
    }

    /// Whether the address is one of these.
    pub(crate) fn holds(&self, address: usize) -> bool {
        address.wrapping_sub(self.start.addr().get()) < self.len
    }
}

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

fn map(place: Option<NonNull<u8>>, len: usize, access: i32, flags: i32, file: i32) -> Result<NonNull<u8>, Errno> {
    let place = place.map_or(ptr::null_mut(), |place| place.as_ptr().cast());
    // SAFETY: without a place the kernel chooses one where nothing is; a place is inside of a reservation of ours,
    // which nobody uses.
    let start = unsafe { libc::mmap(place, len, access, flags, file, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
}

fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the range is one mapping of ours or several side by side, and whoever calls this says that nobody uses
    // it any more.
    let _ = unsafe { libc::munmap(start.as_ptr().cast(), len) };
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
