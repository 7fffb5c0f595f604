use foreign_types::ForeignTypeRef as _;
use openssl::{error::ErrorStack, x509::X509Ref};

/// Whether the certificate's basicConstraints says CA:TRUE (RFC 5280, section 4.2.1.9).
#[must_use]
pub fn is_ca(certificate: &X509Ref) -> bool {
    extension_flags(certificate) & openssl_sys::EXFLAG_CA != 0
}

/// Whether the certificate has basicConstraints, whatever they say.
#[must_use]
pub fn has_basic_constraints(certificate: &X509Ref) -> bool {
    extension_flags(certificate) & openssl_sys::EXFLAG_BCONS != 0
}

fn extension_flags(certificate: &X509Ref) -> u32 {
    // SAFETY: the certificate is valid; OpenSSL keeps what it finds in it, under a lock of its own.
    let flags = unsafe { openssl_sys::X509_get_extension_flags(certificate.as_ptr()) };
    // What it says of extensions that cannot be read would be taken for the reason of the next failure.
    drop(ErrorStack::get());
    flags
}
