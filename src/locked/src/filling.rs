//! Has OpenSSL make all of its tables at the start, so that they lie where [`crate::tables`] keeps them.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};

use crate::arena::lock;

type Fetch = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

unsafe extern "C" {
    fn EVP_MD_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_CIPHER_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_MAC_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_KDF_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_KEYMGMT_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_KEYEXCH_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_SIGNATURE_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_ASYM_CIPHER_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn EVP_KEM_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn OSSL_DECODER_fetch(context: *mut c_void, name: *const c_char, properties: *const c_char) -> *mut c_void;
    fn OPENSSL_init_crypto(options: u64, settings: *const c_void) -> c_int;
    fn EVP_add_digest(digest: *const openssl_sys::EVP_MD) -> c_int;
}

/// `OPENSSL_INIT_NO_ADD_ALL_CIPHERS` and `OPENSSL_INIT_NO_ADD_ALL_DIGESTS`.
const NO_NAMES: u64 = 0x0000_0010 | 0x0000_0020;

type Digest = unsafe extern "C" fn() -> *const openssl_sys::EVP_MD;

/// The digests of signatures, which OpenSSL looks up by name when it verifies one. Its names of ciphers are for files
/// that are encrypted, and we read none.
const DIGESTS: [Digest; 9] = [
    openssl_sys::EVP_sha1,
    openssl_sys::EVP_sha224,
    openssl_sys::EVP_sha256,
    openssl_sys::EVP_sha384,
    openssl_sys::EVP_sha512,
    openssl_sys::EVP_sha3_224,
    openssl_sys::EVP_sha3_256,
    openssl_sys::EVP_sha3_384,
    openssl_sys::EVP_sha3_512,
];

/// One algorithm of each kind: whoever wants one that is not known yet makes OpenSSL list all of its kind.
const ALGORITHMS: [(Fetch, &CStr); 11] = [
    (EVP_MD_fetch, c"SHA256"),
    // For the nonces of signatures: where OpenSSL remembers that it has found it is no key material.
    (EVP_MD_fetch, c"SHA512"),
    (EVP_CIPHER_fetch, c"AES-128-GCM"),
    (EVP_MAC_fetch, c"HMAC"),
    (EVP_KDF_fetch, c"HKDF"),
    (EVP_KEYMGMT_fetch, c"EC"),
    (EVP_KEYEXCH_fetch, c"ECDH"),
    (EVP_SIGNATURE_fetch, c"ECDSA"),
    (EVP_ASYM_CIPHER_fetch, c"RSA"),
    (EVP_KEM_fetch, c"ML-KEM-768"),
    (OSSL_DECODER_fetch, c"EC"),
];

/// Has OpenSSL make its tables in ordinary memory. Call it before anything secret is read or made, after
/// [`crate::adopt_openssl`]. Without it they lie in the arena.
pub fn fill_openssl_tables() {
    lock().tables.open();
    // Before anything else has all of its names listed, some hundreds.
    // SAFETY: null is no settings.
    unsafe { OPENSSL_init_crypto(NO_NAMES, ptr::null()) };
    openssl_sys::init();
    for (fetch, name) in ALGORITHMS {
        // What is returned is kept by OpenSSL in any case, for ever: nothing would be gained by giving it back.
        // SAFETY: null is the usual context and no wish for properties; the name is a C string.
        let _ = unsafe { fetch(ptr::null_mut(), name.as_ptr(), ptr::null()) };
    }
    // Not before: the first of them has each name that is there listed with all of its other names.
    for digest in DIGESTS {
        // SAFETY: the call takes nothing.
        let digest = unsafe { digest() };
        // SAFETY: what each answers is there for as long as the process.
        unsafe { EVP_add_digest(digest) };
    }
    // SAFETY: the call takes nothing.
    unsafe { openssl_sys::ERR_clear_error() };
    lock().tables.filling = false;
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::{
        memory_functions::{free, malloc, realloc},
        tables::SIZE,
    };

    const HERE: (*const c_char, i32) = (ptr::null(), 0);

    fn is_table(block: *mut c_void) -> bool {
        lock().tables.hold(NonNull::new(block.cast()).expect("there is room"))
    }

    fn bytes<'a>(block: *mut c_void, len: usize) -> &'a mut [u8] {
        // SAFETY: the caller has a block of this length, and this is all that uses it.
        unsafe { std::slice::from_raw_parts_mut(block.cast(), len) }
    }

    #[test]
    fn tables_that_grow_later_move_to_the_arena() {
        let resized = |block, size| {
            // SAFETY: the block is from `malloc` or `realloc` below, and not used any more.
            unsafe { realloc(block, size, HERE.0, HERE.1) }
        };
        lock().tables.open();
        let block = malloc(100, HERE.0, HERE.1);
        assert!(is_table(block));
        let block = resized(block, 200);
        assert!(is_table(block), "it grows among the tables");
        let block = resized(block, 2000);
        assert!(is_table(block), "likewise");
        bytes(block, 2000).fill(7);
        lock().tables.filling = false;

        assert!(!is_table(malloc(100, HERE.0, HERE.1)), "what is new lies in the arena");
        let block = resized(block, 50);
        assert!(is_table(block), "it shrinks in its place");
        let shrunk = block;
        let block = resized(block, 1000);
        assert!(!is_table(block));
        assert_eq!(bytes(block, 50), [7; 50]);
        // The list that it is on has no other.
        assert_eq!(bytes(shrunk, 2000)[..], [0; 2000], "content stays behind");
        // SAFETY: the block is from above and not used any more.
        unsafe { free(block, HERE.0, HERE.1) };

        lock().tables.open();
        let block = malloc(SIZE, HERE.0, HERE.1);
        assert!(!is_table(block), "what finds no room lies in the arena");
        lock().tables.filling = false;
        // SAFETY: the block is from above and not used any more.
        unsafe { free(block, HERE.0, HERE.1) };
    }
}
