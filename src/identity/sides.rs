//! The two sides of a TLS connection, as certificates are good for one, or both.

use openssl::x509::{X509ExtendedKeyUsage, X509PurposeId, X509Ref};

/// One of them.
pub(super) struct Side {
    usage: X509ExtendedKeyUsage,
    /// What allows it in an extended key usage (RFC 5280, section 4.2.1.12).
    pub(super) name: &'static str,
    /// What a path is verified for on it.
    pub(super) purpose: X509PurposeId,
}

/// Both, the server first.
pub(super) const SIDES: [Side; 2] = [
    Side { usage: X509ExtendedKeyUsage::SSL_SERVER, name: "serverAuth", purpose: X509PurposeId::SSL_SERVER },
    Side { usage: X509ExtendedKeyUsage::SSL_CLIENT, name: "clientAuth", purpose: X509PurposeId::SSL_CLIENT },
];

/// The sides that a certificate is not for. Without an extended key usage it is for both.
pub(super) fn lacking(certificate: &X509Ref) -> impl Iterator<Item = &'static Side> {
    let usage = certificate.extended_key_usage();
    SIDES.iter().filter(move |side| usage.is_some_and(|usage| !usage.contains(side.usage)))
}
