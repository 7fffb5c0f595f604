//! Stand-ins for functions of the C library. Two bring `sscanf` into a static program and with it, for a port number and a
//! line of `/proc/self/maps`, 94 KiB that read numbers of every kind and size. One makes a system call each time that
//! OpenSSL sets something up.

use std::{
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

/// The number that a text begins with, behind blanks; more than fits is the largest.
fn number(text: &[u8]) -> Option<u32> {
    let digits = text.trim_ascii_start();
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = |sum: u32, byte: &u8| sum.saturating_mul(10).saturating_add(u32::from(byte - b'0'));
    (len > 0).then(|| digits[..len].iter().fold(0, value))
}

/// Of what is set up once: nobody has begun with it, which is how it is initialized; somebody has; it is done.
const NEW: i32 = 0;
const BEGUN: i32 = 1;
const DONE: i32 = 2;

/// Has `init` called the first time. Whoever else comes meanwhile returns when that has.
fn once(state: &AtomicI32, init: impl FnOnce()) {
    // OpenSSL asks thousands of times; a look costs less than an exchange.
    if state.load(Ordering::Acquire) == DONE {
        return;
    }
    match state.compare_exchange(NEW, BEGUN, Ordering::Acquire, Ordering::Acquire) {
        Ok(_) => {
            init();
            state.store(DONE, Ordering::Release);
        }
        // There hardly ever is another thread: it is not worth telling the kernel about.
        Err(_) => {
            while state.load(Ordering::Acquire) != DONE {
                thread::yield_now();
            }
        }
    }
}

#[cfg(target_feature = "crt-static")]
mod symbols {
    use std::{
        ffi::{CStr, c_char, c_int, c_uint, c_void},
        sync::atomic::AtomicI32,
    };

    use nix::libc::pthread_t;

    /// Reads one decimal number, which is all that OpenSSL asks of it (`OSSL_parse_url`). It is called with as many
    /// arguments as it takes here, which a variadic function gets in the same registers.
    ///
    /// # Safety
    /// Both texts end with a null byte, and `to` is where a number may be written.
    unsafe fn scan(text: *const c_char, format: *const c_char, to: *mut c_uint) -> c_int {
        // SAFETY: the caller says so.
        let (text, format) = (unsafe { CStr::from_ptr(text) }, unsafe { CStr::from_ptr(format) });
        if format != c"%u" && format != c"%d" {
            return 0;
        }
        match super::number(text.to_bytes()) {
            Some(number) => {
                // SAFETY: the caller says so.
                unsafe { to.write(number) };
                1
            }
            None => 0,
        }
    }

    /// The name of `sscanf` in programs that are compiled for C99.
    ///
    /// # Safety
    /// As for [`scan`].
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __isoc99_sscanf(text: *const c_char, format: *const c_char, to: *mut c_uint) -> c_int {
        // SAFETY: the caller says so.
        unsafe { scan(text, format, to) }
    }

    /// The same for C23.
    ///
    /// # Safety
    /// As for [`scan`].
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __isoc23_sscanf(text: *const c_char, format: *const c_char, to: *mut c_uint) -> c_int {
        // SAFETY: the caller says so.
        unsafe { scan(text, format, to) }
    }

    /// Calls `init` the first time that it is called with this `state`, as the C library's does, which wakes those who wait
    /// whether there are any or not. Its own functions call theirs by another name.
    ///
    /// # Safety
    /// `state` is a `pthread_once_t` that was zero at first, and is used with nothing else.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn pthread_once(state: *const AtomicI32, init: extern "C" fn()) -> c_int {
        // SAFETY: the caller says so; the C library defines the type as an `int`.
        super::once(unsafe { &*state }, || init());
        0
    }

    /// Where the stack of a thread lies: the standard library asks for its handler of overflows, does without it, and has
    /// ours in its place.
    #[unsafe(no_mangle)]
    extern "C" fn pthread_getattr_np(_thread: pthread_t, _attributes: *mut c_void) -> c_int {
        nix::libc::ENOSYS
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI32, Ordering},
        thread,
    };

    use super::{number, once};

    #[test]
    fn what_is_set_up_once_is_ready_for_everybody() {
        for _ in 0..200 {
            let (state, calls) = (AtomicI32::new(0), AtomicI32::new(0));
            let set_up = || {
                once(&state, || {
                    thread::yield_now();
                    calls.fetch_add(1, Ordering::Relaxed);
                });
                calls.load(Ordering::Relaxed)
            };
            thread::scope(|scope| {
                let others: Vec<_> = (0..4).map(|_| scope.spawn(set_up)).collect();
                assert!(others.into_iter().all(|other| other.join().expect("it does not panic") == 1));
            });
            assert_eq!(set_up(), 1);
        }
    }

    #[test]
    fn a_number_is_read_as_far_as_it_goes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("443/path", Some(443)),
            (" 80", Some(80)),
            ("4294967295", Some(u32::MAX)),
            ("99999999999", Some(u32::MAX)),
            ("", None),
            ("x1", None),
            ("-1", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
    }
}
