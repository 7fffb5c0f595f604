//! How OpenSSL signs with keys of ours and verifies with those of others, and where its randomness comes from.

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::OnceLock,
};

use crate::{
    scope::secretly,
    verified::{self, EcVerify},
};

/// OpenSSL's own types, of which only pointers are handled here.
type Method = c_void;
type Key = c_void;
type Number = c_void;

/// `sign` of an `EC_KEY_METHOD` (openssl/ec.h).
type EcSign = unsafe extern "C" fn(
    c_int,
    *const u8,
    c_int,
    *mut u8,
    *mut c_uint,
    *const Number,
    *const Number,
    *mut Key,
) -> c_int;
/// Its two others, which are left as they are.
type EcOther = Option<unsafe extern "C" fn()>;
/// `rsa_priv_enc` of an `RSA_METHOD` (openssl/rsa.h): the private operation of every signature.
type RsaPrivate = unsafe extern "C" fn(c_int, *const u8, *mut u8, *mut Key, c_int) -> c_int;

unsafe extern "C" {
    safe fn EC_KEY_OpenSSL() -> *const Method;
    fn EC_KEY_METHOD_new(from: *const Method) -> *mut Method;
    fn EC_KEY_METHOD_get_sign(from: *const Method, sign: *mut Option<EcSign>, setup: *mut EcOther, raw: *mut EcOther);
    fn EC_KEY_METHOD_set_sign(to: *mut Method, sign: Option<EcSign>, setup: EcOther, raw: EcOther);
    fn EC_KEY_METHOD_get_verify(from: *const Method, verify: *mut Option<EcVerify>, raw: *mut EcOther);
    fn EC_KEY_METHOD_set_verify(to: *mut Method, verify: Option<EcVerify>, raw: EcOther);
    fn EC_KEY_set_default_method(method: *const Method);
    safe fn RSA_PKCS1_OpenSSL() -> *const Method;
    fn RSA_meth_dup(from: *const Method) -> *mut Method;
    fn RSA_meth_get_priv_enc(from: *const Method) -> Option<RsaPrivate>;
    fn RSA_meth_set_priv_enc(to: *mut Method, private: Option<RsaPrivate>) -> c_int;
    fn RSA_set_default_method(method: *const Method);
    fn RAND_set_rand_method(method: *const Random) -> c_int;
}

/// What OpenSSL's methods do, inside of [`secretly`] for keys that are made or read there. EC keys that are read elsewhere
/// verify each signature once.
struct Methods {
    ec: *const Method,
    ec_sign: EcSign,
    public_ec: *const Method,
    ec_verify: EcVerify,
    rsa: *const Method,
    rsa_private: RsaPrivate,
}

// SAFETY: the methods are written once, before anybody gets to see them, and stay for ever.
unsafe impl Send for Methods {}
// SAFETY: as above.
unsafe impl Sync for Methods {}

/// Nothing as long as OpenSSL was not adopted, and where it has no such methods.
static METHODS: OnceLock<Option<Methods>> = OnceLock::new();

/// Makes the methods, and has OpenSSL take its randomness from the kernel.
pub(crate) fn prepare() {
    if let Some(methods) = METHODS.get_or_init(Methods::make) {
        methods.choose_for_others();
    }
    // SAFETY: the methods are a static of the layout that is asked for.
    unsafe { RAND_set_rand_method(&raw const RANDOM) };
}

impl Methods {
    fn make() -> Option<Self> {
        let (mut sign, mut setup, mut raw) = (None, None, None);
        // SAFETY: the pointers are to variables of these types, and OpenSSL's method is a static.
        unsafe { EC_KEY_METHOD_get_sign(EC_KEY_OpenSSL(), &raw mut sign, &raw mut setup, &raw mut raw) };
        // SAFETY: OpenSSL's method is a static.
        let ec = unsafe { EC_KEY_METHOD_new(EC_KEY_OpenSSL()) };
        // SAFETY: as above.
        let rsa = unsafe { RSA_meth_dup(RSA_PKCS1_OpenSSL()) };
        // SAFETY: as above.
        let rsa_private = unsafe { RSA_meth_get_priv_enc(RSA_PKCS1_OpenSSL()) };
        // SAFETY: as above.
        let public_ec = unsafe { EC_KEY_METHOD_new(EC_KEY_OpenSSL()) };
        let (mut verify, mut raw_verify) = (None, None);
        // SAFETY: the pointers are to variables of these types, and OpenSSL's method is a static.
        unsafe { EC_KEY_METHOD_get_verify(EC_KEY_OpenSSL(), &raw mut verify, &raw mut raw_verify) };
        let is_missing = ec.is_null() || rsa.is_null() || public_ec.is_null();
        let (Some(ec_sign), Some(rsa_private), Some(ec_verify), false) = (sign, rsa_private, verify, is_missing) else {
            return None;
        };
        // SAFETY: the method is new and ours, and what it gets has the right types.
        unsafe { EC_KEY_METHOD_set_sign(ec, Some(sign_with_ec), setup, raw) };
        // SAFETY: as above.
        unsafe { RSA_meth_set_priv_enc(rsa, Some(sign_with_rsa)) };
        // SAFETY: as above.
        unsafe { EC_KEY_METHOD_set_verify(public_ec, Some(verify_with_ec), raw_verify) };
        Some(Self { ec, ec_sign, public_ec, ec_verify, rsa, rsa_private })
    }

    /// For keys that are made or read from now on.
    fn choose_for_secrets(&self) {
        set_defaults(self.ec, self.rsa);
    }

    fn choose_for_others(&self) {
        set_defaults(self.public_ec, RSA_PKCS1_OpenSSL());
    }
}

fn methods() -> Option<&'static Methods> {
    METHODS.get()?.as_ref()
}

/// While this lives, keys that OpenSSL makes get our methods.
pub(crate) struct Chosen;

impl Chosen {
    pub(crate) fn now() -> Self {
        if let Some(methods) = methods() {
            methods.choose_for_secrets();
        }
        Self
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if let Some(methods) = methods() {
            methods.choose_for_others();
        }
    }
}

fn set_defaults(ec: *const Method, rsa: *const Method) {
    // SAFETY: the method stays for ever.
    unsafe { EC_KEY_set_default_method(ec) };
    // SAFETY: the method stays for ever.
    unsafe { RSA_set_default_method(rsa) };
}

unsafe extern "C" fn sign_with_ec(
    kind: c_int,
    digest: *const u8,
    digest_len: c_int,
    signature: *mut u8,
    signature_len: *mut c_uint,
    inverse: *const Number,
    nonce: *const Number,
    key: *mut Key,
) -> c_int {
    let Some(methods) = methods() else { return 0 };
    secretly(|| {
        // SAFETY: these are OpenSSL's own arguments for its own function.
        unsafe { (methods.ec_sign)(kind, digest, digest_len, signature, signature_len, inverse, nonce, key) }
    })
}

unsafe extern "C" fn sign_with_rsa(len: c_int, from: *const u8, to: *mut u8, key: *mut Key, padding: c_int) -> c_int {
    let Some(methods) = methods() else { return -1 };
    secretly(|| {
        // SAFETY: these are OpenSSL's own arguments for its own function.
        unsafe { (methods.rsa_private)(len, from, to, key, padding) }
    })
}

unsafe extern "C" fn verify_with_ec(
    kind: c_int,
    digest: *const u8,
    digest_len: c_int,
    signature: *const u8,
    signature_len: c_int,
    key: *mut Key,
) -> c_int {
    let Some(methods) = methods() else { return -1 };
    // SAFETY: these are OpenSSL's own arguments for its own function.
    unsafe { verified::once(methods.ec_verify, kind, (digest, digest_len), (signature, signature_len), key) }
}

/// `RAND_METHOD` (openssl/rand.h).
#[repr(C)]
struct Random {
    seed: Option<unsafe extern "C" fn()>,
    bytes: Option<unsafe extern "C" fn(*mut u8, c_int) -> c_int>,
    cleanup: Option<unsafe extern "C" fn()>,
    add: Option<unsafe extern "C" fn()>,
    pseudorandom: Option<unsafe extern "C" fn(*mut u8, c_int) -> c_int>,
    status: Option<unsafe extern "C" fn() -> c_int>,
}

/// The kernel's randomness, each time. OpenSSL's own generators would keep a state in memory from which the next key
/// could be foretold.
static RANDOM: Random = Random {
    seed: None,
    bytes: Some(random),
    cleanup: None,
    add: None,
    pseudorandom: Some(random),
    status: Some(is_seeded),
};

unsafe extern "C" fn random(to: *mut u8, len: c_int) -> c_int {
    let Ok(len) = usize::try_from(len) else { return 0 };
    let mut done = 0;
    while done < len {
        // SAFETY: the caller has `len` bytes there.
        let rest = unsafe { to.add(done) };
        // SAFETY: as above.
        let got = unsafe { libc::getrandom(rest.cast(), len - done, 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            // A signal came in between.
            Err(_) if nix::errno::Errno::last() == nix::errno::Errno::EINTR => {}
            Err(_) => return 0,
        }
    }
    1
}

unsafe extern "C" fn is_seeded() -> c_int {
    1
}
