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
    let mut arena = lock();
    let block = arena.tables.allocate(layout).or_else(|| arena.allocate_for_openssl(layout));
    with_size(block, size)
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
    let resized = unsafe { resize(&mut lock(), start, old, size + HEADER) };
    with_size(resized, size)
}

/// # Safety
/// As C's: the block is null or from `malloc` above, and nobody uses it any more.
pub(crate) unsafe extern "C" fn free(block: *mut c_void, _file: *const c_char, _line: c_int) {
    // SAFETY: the caller says that the block is null or from here.
    if let Some((start, layout)) = unsafe { whole(block) } {
        let mut arena = lock();
        if arena.tables.hold(start) {
            // SAFETY: `start` was allocated with this layout, and the caller has given it up.
            unsafe { arena.tables.free(start, layout) };
        } else {
            // SAFETY: as above.
            unsafe { arena.free_for_openssl(start, layout) };
        }
    }
}

/// # Safety
/// As for [`crate::pool::Pool::resize`], wherever the block lies.
unsafe fn resize(arena: &mut Arena, block: NonNull<u8>, old: Layout, new: usize) -> Option<NonNull<u8>> {
    if !arena.tables.hold(block) {
        // SAFETY: the caller's promise is the same.
        return unsafe { arena.resize_for_openssl(block, old, new) };
    }
    // SAFETY: the caller's promise is the same, and the block is one of the tables'.
    let resized = unsafe { arena.tables.resize(block, old, new) };
    if resized.is_some() {
        return resized;
    }
    let layout = Layout::from_size_align(new, old.align()).ok()?;
    let place = arena.tables.allocate(layout).or_else(|| arena.allocate_for_openssl(layout))?;
    // SAFETY: the new block overlaps no other, and both are that long.
    unsafe { place.copy_from_nonoverlapping(block, old.size().min(new)) };
    // SAFETY: the block is one of the tables', has this layout, and the caller has given it up.
    unsafe { arena.tables.free(block, old) };
    Some(place)
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
