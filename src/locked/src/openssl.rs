//! OpenSSL's memory from the arena.

use std::{
    alloc::Layout,
    error::Error,
    ffi::{c_char, c_int, c_void},
    fmt,
    ptr::{self, NonNull},
};

use crate::arena::lock;

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

// The texts of 3,400 errors take 100 KiB, and each page of secret memory takes some 20 µs to be had: most processes never
// need one. OpenSSL offers no way to have them later, but in a static link its own can be called.
#[cfg(target_feature = "crt-static")]
mod texts {
    use std::{
        ffi::{c_int, c_void},
        ptr,
        sync::{Mutex, PoisonError},
    };

    unsafe extern "C" {
        fn OPENSSL_init_crypto(options: u64, settings: *const c_void) -> c_int;
        safe fn ossl_err_load_crypto_strings() -> c_int;
        safe fn ossl_err_load_SSL_strings() -> c_int;
    }

    /// OPENSSL_INIT_NO_LOAD_CRYPTO_STRINGS, OPENSSL_INIT_NO_LOAD_SSL_STRINGS, OPENSSL_INIT_NO_ATEXIT.
    const WITHOUT: u64 = 0x1 | 0x0010_0000 | 0x0008_0000;

    /// What they take of the heap, in bytes.
    const SIZE: usize = 104 * 1024;
    /// Their place, which nobody else may take: they are loaded when things go badly. It costs no memory until then.
    static PLACE: Mutex<Option<Vec<u8>>> = Mutex::new(None);

    /// Has OpenSSL begin without them.
    pub(super) fn leave_out() {
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::with_capacity(SIZE));
        // SAFETY: there are no settings. A failure shows in whatever is done next.
        unsafe { OPENSSL_init_crypto(WITHOUT, ptr::null()) };
    }

    pub(super) fn load() {
        let mut place = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        if place.take().is_some() {
            ossl_err_load_crypto_strings();
            ossl_err_load_SSL_strings();
        }
    }
}

#[cfg(not(target_feature = "crt-static"))]
mod texts {
    pub(super) fn leave_out() {}

    pub(super) fn load() {}
}

/// Has OpenSSL know its errors by text and not only by number. Call it before one is told.
pub fn load_error_texts() {
    texts::load();
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

/// Gives OpenSSL the arena as its heap. Call it before anything else of OpenSSL.
///
/// # Errors
/// When OpenSSL has allocated already.
pub fn adopt_openssl() -> Result<(), TooLate> {
    if CRYPTO_set_mem_functions(malloc, realloc, free) != 1 {
        return Err(TooLate);
    }
    texts::leave_out();
    Ok(())
}

extern "C" fn malloc(size: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    let Some(layout) = layout(size).filter(|_| size > 0) else { return ptr::null_mut() };
    with_size(lock().pool.allocate(layout), size)
}

/// # Safety
/// As C's: the block is null or from `malloc` above, and only what is returned is used from here on.
unsafe extern "C" fn realloc(block: *mut c_void, size: usize, file: *const c_char, line: c_int) -> *mut c_void {
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
    if layout(size).is_none() {
        return ptr::null_mut();
    }
    // SAFETY: `start` was allocated with this layout, and the caller drops the old block if there is a new one.
    let resized = unsafe { lock().pool.resize(start, old, size + HEADER) };
    with_size(resized, size)
}

/// # Safety
/// As C's: the block is null or from `malloc` above, and nobody uses it any more.
unsafe extern "C" fn free(block: *mut c_void, _file: *const c_char, _line: c_int) {
    // SAFETY: the caller says that the block is null or from here.
    if let Some((start, layout)) = unsafe { whole(block) } {
        // SAFETY: `start` was allocated with this layout, and the caller has given it up.
        unsafe { lock().pool.free(start, layout) };
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
