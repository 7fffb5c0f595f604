//! Stand-ins for two functions of the C library, which bring `sscanf` into a static program and with it, for a port number
//! and a line of `/proc/self/maps`, 94 KiB that read numbers of every kind and size.

/// The number that a text begins with, behind blanks; more than fits is the largest.
fn number(text: &[u8]) -> Option<u32> {
    let digits = text.trim_ascii_start();
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = |sum: u32, byte: &u8| sum.saturating_mul(10).saturating_add(u32::from(byte - b'0'));
    (len > 0).then(|| digits[..len].iter().fold(0, value))
}

#[cfg(target_feature = "crt-static")]
mod symbols {
    use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

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

    /// Where the stack of a thread lies: the standard library asks for its handler of overflows, does without it, and has
    /// ours in its place.
    #[unsafe(no_mangle)]
    extern "C" fn pthread_getattr_np(_thread: pthread_t, _attributes: *mut c_void) -> c_int {
        nix::libc::ENOSYS
    }
}

#[cfg(test)]
mod tests {
    use super::number;

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
