//! What a peer may make OpenSSL take before it has shown who it is.

use std::{ffi::c_long, ptr};

use openssl::ssl::SslContextBuilder;

/// `SSL_CTRL_SET_MAX_CERT_LIST`, which openssl-sys leaves out.
const SET_MAX_CERT_LIST: i32 = 51;

/// Bytes of the certificate chain that a peer may present, as of the list of authorities that it may name; a handshake
/// with more of either fails. Without it OpenSSL takes 100 KiB, and some twenty times that to parse it.
pub fn limit_certificate_chain(context: &mut SslContextBuilder, bytes: u16) {
    // SAFETY: the context is valid for as long as it is borrowed, and this command takes its argument by value.
    unsafe { openssl_sys::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, c_long::from(bytes), ptr::null_mut()) };
}
