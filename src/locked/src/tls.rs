//! What a peer may make OpenSSL take before it has shown who it is, and what it is verified with.

use std::{
    ffi::{c_int, c_long, c_void},
    ptr,
    sync::OnceLock,
};

use foreign_types::{ForeignType, ForeignTypeRef};
use openssl::{
    error::ErrorStack,
    ex_data::Index,
    ssl::{SslContext, SslContextBuilder, SslRef},
    stack::StackRef,
    x509::{X509, X509StoreContext, X509StoreContextRef},
};
use openssl_sys::{SSL_CTX, X509_STORE, X509_STORE_CTX, stack_st_X509};

/// `SSL_CTRL_SET_MAX_CERT_LIST`, which openssl-sys leaves out.
const SET_MAX_CERT_LIST: i32 = 51;

/// Bytes of the certificate chain that a peer may present, as of the list of authorities that it may name; a handshake
/// with more of either fails. Without it OpenSSL takes 100 KiB, and some twenty times that to parse it.
pub fn limit_certificate_chain(context: &mut SslContextBuilder, bytes: u16) {
    // SAFETY: the context is valid for as long as it is borrowed, and this command takes its argument by value.
    unsafe { openssl_sys::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, c_long::from(bytes), ptr::null_mut()) };
}

/// `SSL_CTRL_GET_NEGOTIATED_GROUP`, likewise.
const GET_NEGOTIATED_GROUP: i32 = 134;

/// OpenSSL's number for the group of the key exchange; 0 without one. Its name has a function only since OpenSSL 3.2.
pub fn negotiated_group(ssl: &SslRef) -> i64 {
    // SAFETY: the connection is valid for as long as it is borrowed, and this command takes no argument.
    unsafe { openssl_sys::SSL_ctrl(ssl.as_ptr(), GET_NEGOTIATED_GROUP, 0, ptr::null_mut()) }
}

/// Finds the trust anchors that may matter for the certificates that a peer presents, the leaf first.
pub type AnchorsFor = Box<dyn Fn(&StackRef<X509>) -> Vec<X509> + Send + Sync>;

static ANCHORS_FOR: OnceLock<Index<SslContext, AnchorsFor>> = OnceLock::new();

// openssl-sys leaves these out.
unsafe extern "C" {
    fn SSL_CTX_set_cert_verify_callback(
        context: *mut SSL_CTX,
        callback: unsafe extern "C" fn(*mut X509_STORE_CTX, *mut c_void) -> c_int,
        argument: *mut c_void,
    );
    fn X509_STORE_CTX_get0_untrusted(context: *const X509_STORE_CTX) -> *mut stack_st_X509;
    fn X509_STORE_CTX_get0_store(context: *const X509_STORE_CTX) -> *mut X509_STORE;
}

/// Adds anchors to the context's store once it is known what the peer presents. All of a file with hundreds, parsed,
/// would fill the arena.
///
/// # Errors
/// What OpenSSL says; it fails only for want of memory.
pub fn find_anchors(context: &mut SslContextBuilder, anchors: AnchorsFor) -> Result<(), ErrorStack> {
    let index = match ANCHORS_FOR.get() {
        Some(index) => *index,
        None => {
            let index = SslContext::new_ex_index()?;
            *ANCHORS_FOR.get_or_init(|| index)
        }
    };
    context.set_ex_data(index, anchors);
    // SAFETY: the context is valid for as long as it is borrowed, and the callback needs no argument.
    unsafe { SSL_CTX_set_cert_verify_callback(context.as_ptr(), verify, ptr::null_mut()) };
    Ok(())
}

unsafe extern "C" fn verify(context: *mut X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls this with a context that is valid until it returns, and uses it nowhere else meanwhile.
    let verified = unsafe { X509StoreContextRef::from_ptr_mut(context) };
    // SAFETY: the context is valid; what it answers lives as long.
    let presented = unsafe { X509_STORE_CTX_get0_untrusted(context) };
    // SAFETY: likewise.
    let store = unsafe { X509_STORE_CTX_get0_store(context) };
    if !presented.is_null() && !store.is_null() {
        // SAFETY: it is a stack of certificates, which nobody changes until this returns.
        let presented = unsafe { StackRef::<X509>::from_ptr(presented) };
        for anchor in anchors(verified, presented) {
            // SAFETY: both are valid, and the store counts its own reference to the certificate.
            unsafe { openssl_sys::X509_STORE_add_cert(store, anchor.as_ptr()) };
        }
    }
    c_int::from(verified.verify_cert().unwrap_or(false))
}

fn anchors(context: &X509StoreContextRef, presented: &StackRef<X509>) -> Vec<X509> {
    let ssl = X509StoreContext::ssl_idx().ok().and_then(|index| context.ex_data(index));
    let find = ssl.and_then(|ssl| ssl.ssl_context().ex_data(*ANCHORS_FOR.get()?));
    find.map(|find| find(presented)).unwrap_or_default()
}
