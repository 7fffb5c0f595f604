//! OpenSSL's memory from the arena.

use std::{
    alloc::Layout,
    error::Error,
    ffi::{c_char, c_int, c_void},
    fmt,
    ptr::{self, NonNull},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    arena::{Arena, lock},
    methods,
    small::{self, is_small},
};

// The link to libcrypto, whichever it is.
use openssl_sys as _;

/// Before each block stands its size, so that freeing can wipe it; 16 bytes keep C's alignment.
const HEADER: usize = 16;

type Malloc = extern "C" fn(usize, *const c_char, c_int) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

unsafe extern "C" {
    safe fn CRYPTO_set_mem_functions(malloc: Malloc, realloc: Realloc, free: Free) -> c_int;
}

/// OpenSSL has allocated memory already, so some of it would lie outside of the arena.
#[derive(Debug)]
pub struct TooLate;

impl fmt::Display for TooLate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenSSL was used before its memory was moved to the arena")
    }
}

impl Error for TooLate {}

/// Gives OpenSSL the arena as its heap, and [`crate::secretly`] as the place where it signs. Call it before anything
/// else of OpenSSL.
///
/// # Errors
/// When OpenSSL has allocated already.
pub fn adopt_openssl() -> Result<(), TooLate> {
    if CRYPTO_set_mem_functions(malloc, realloc, free) != 1 {
        return Err(TooLate);
    }
    methods::prepare();
    Ok(())
}

/// Bytes of the largest block that OpenSSL gets at present.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Does `work`, in which OpenSSL gets no block of more than so many bytes: of a peer that nobody knows yet it takes messages
/// of up to 128 KiB, and a "no" for the end of the connection.
pub fn with_blocks_up_to<R>(bytes: usize, work: impl FnOnce() -> R) -> R {
    struct Before(usize);
    impl Drop for Before {
        fn drop(&mut self) {
            LARGEST.store(self.0, Ordering::Relaxed);
        }
    }
    let _before = Before(LARGEST.swap(bytes, Ordering::Relaxed));
    work()
}

pub(crate) extern "C" fn malloc(size: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    let Some(layout) = layout(size).filter(|_| (1..=LARGEST.load(Ordering::Relaxed)).contains(&size)) else {
        return ptr::null_mut();
    };
    with_size(lock().allocate_for_openssl(layout), size)
}

/// # Safety
/// As C's: the block is null or from `malloc` above, and only what is returned is used from here on.
pub(crate) unsafe extern "C" fn realloc(
    block: *mut c_void,
    size: usize,
    file: *const c_char,
    line: c_int,
) -> *mut c_void {
    if block.is_null() {
        return malloc(size, file, line);
    }
    if size == 0 {
        // SAFETY: the caller's promise is the same.
        unsafe { free(block, file, line) };
        return ptr::null_mut();
    }
    // SAFETY: the caller says that the block is from here.
    let Some((start, old)) = (unsafe { whole(block) }) else { return ptr::null_mut() };
    if layout(size).is_none() || size > LARGEST.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    // SAFETY: `start` was allocated with this layout, and the caller drops the old block if there is a new one.
    let resized = unsafe { lock().resize_for_openssl(start, old, size + HEADER) };
    with_size(resized, size)
}

/// # Safety
/// As C's: the block is null or from `malloc` above, and nobody uses it any more.
pub(crate) unsafe extern "C" fn free(block: *mut c_void, _file: *const c_char, _line: c_int) {
    // SAFETY: the caller says that the block is null or from here.
    if let Some((start, layout)) = unsafe { whole(block) } {
        // SAFETY: `start` was allocated with this layout, and the caller has given it up.
        unsafe { lock().free_for_openssl(start, layout) };
    }
}

/// What OpenSSL's small blocks get of the heap, in one piece. What finds no room there lies wherever there is some.
const FOR_SMALL: Layout = match Layout::from_size_align((48 << 10) - 16, HEADER) {
    Ok(piece) => piece,
    Err(_) => panic!("a size and a power of two"),
};

/// Where OpenSSL's blocks lie, of which most are small and soon given back: among its tables while these are filled, in a
/// piece for small ones, and else where all others lie.
impl Arena {
    fn allocate_for_openssl(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if let Some(block) = self.tables.allocate(layout) {
            return Some(block);
        }
        // What the tables had no room for stays for ever.
        if self.is_for_secrets() || self.tables.filling || !is_small(layout) {
            return self.allocate(layout);
        }
        if self.small.is_empty()
            && let Some(piece) = self.pool.allocate(FOR_SMALL)
        {
            self.small.add(piece, FOR_SMALL.size());
        }
        self.small.allocate(layout).or_else(|| self.pool.allocate(layout))
    }

    /// Wipes a block and takes it back.
    ///
    /// # Safety
    /// As for [`crate::pool::Pool::free`], wherever the block lies.
    unsafe fn free_for_openssl(&mut self, block: NonNull<u8>, layout: Layout) {
        if self.tables.hold(block) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.tables.free(block, layout) };
        } else if self.small.hold(block) {
            // SAFETY: as above.
            unsafe { self.small.free(block, layout) };
        } else {
            // SAFETY: as above.
            unsafe { self.free(block, layout) };
        }
    }

    /// Makes a block longer or shorter. It stays among its kind, but for one that becomes key material.
    ///
    /// # Safety
    /// As for [`crate::pool::Pool::resize`], wherever the block lies.
    unsafe fn resize_for_openssl(&mut self, block: NonNull<u8>, old: Layout, new: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(new, old.align()).ok()?;
        let resized = if self.tables.hold(block) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.tables.resize(block, old, new) }
        } else if !self.small.hold(block) {
            // SAFETY: as above.
            return unsafe { self.resize(block, old, new) };
        } else if is_small(layout) && (new <= old.size() || !self.is_for_secrets()) {
            // SAFETY: as above.
            unsafe { small::resize(block, old, layout) }
        } else {
            None
        };
        if resized.is_some() {
            return resized;
        }
        let place = self.allocate_for_openssl(layout)?;
        // SAFETY: the new block overlaps no other, and both are that long.
        unsafe { place.copy_from_nonoverlapping(block, old.size().min(new)) };
        // SAFETY: the block has this layout, and the caller has given it up.
        unsafe { self.free_for_openssl(block, old) };
        Some(place)
    }
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

/// Writes the header of a block, and returns what comes after it.
fn with_size(start: Option<NonNull<u8>>, size: usize) -> *mut c_void {
    let Some(start) = start else { return ptr::null_mut() };
    // SAFETY: the block begins with a header, which is aligned for a size, and nobody else has the block yet.
    unsafe { start.cast::<usize>().write(size) };
    // SAFETY: the block is longer than its header.
    unsafe { start.add(HEADER) }.as_ptr().cast()
}

/// The block with its header, and the layout of both.
///
/// # Safety
/// The block is null or was returned by `with_size` and not freed since.
unsafe fn whole(block: *mut c_void) -> Option<(NonNull<u8>, Layout)> {
    let block = NonNull::new(block.cast::<u8>())?;
    // SAFETY: before each block from here stands its header.
    let start = unsafe { block.sub(HEADER) };
    // SAFETY: `with_size` wrote it, and only this module writes there.
    let size = unsafe { start.cast::<usize>().read() };
    Some((start, layout(size)?))
}
