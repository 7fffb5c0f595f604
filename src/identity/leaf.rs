//! What Envoy refuses of a leaf that it can read, when it is to present it: with it would go the whole secret, and
//! whatever Envoy had before stays. `tests/roots/odd_certificates.rs` holds it against Envoy itself.

use openssl::{
    error::ErrorStack,
    nid::Nid,
    pkey::{Id, PKeyRef, Public},
    x509::X509Ref,
};

use super::{
    strict,
    validity::{Unreadable, extension},
};

const KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x0f];
const NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
/// TLS feature (RFC 7633), and what says "must staple" in it.
const FEATURE: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 1, 0x18];
const MUST_STAPLE: [u8; 5] = [0x30, 3, 2, 1, 5];
/// The first bit of the key usage.
const DIGITAL_SIGNATURE: u8 = 0x80;
/// The smallest RSA key.
const LEAST_RSA_BITS: u32 = 2048;

/// Looks at all of it.
///
/// # Errors
/// Why Envoy refuses it, in words that go on after "the leaf".
pub(super) fn check(leaf: &X509Ref) -> Result<(), &'static str> {
    let der = leaf.to_der().map_err(|_| "cannot be written")?;
    let found = look(leaf, &der);
    // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
    drop(ErrorStack::get());
    found
}

fn look(leaf: &X509Ref, der: &[u8]) -> Result<(), &'static str> {
    let value = |identifier: &[u8]| extension(der, identifier).map_err(|Unreadable| "has extensions that are not DER");
    let key = leaf.public_key().map_err(|_| "has a key that cannot be parsed")?;
    check_key(&key)?;
    if let Some(usage) = value(&KEY_USAGE)? {
        let bits = strict::bits(usage).map_err(|_| "has a key usage that is not DER")?;
        if key.id() == Id::EC && bits.first().is_none_or(|first| first & DIGITAL_SIGNATURE == 0) {
            return Err("has an elliptic key and a key usage without digitalSignature");
        }
    }
    let named = match (value(&NAMES)?, leaf.subject_alt_names()) {
        (None, _) => false,
        // Of the others none counts.
        (Some(der), Some(names)) if strict::is_sequence(der) => {
            names.iter().any(|name| name.uri().is_some() || name.dnsname().is_some() || name.ipaddress().is_some())
        }
        _ => return Err("has SANs that are not DER"),
    };
    match leaf.subject_name().entries_by_nid(Nid::COMMONNAME).next().map(|entry| entry.data().as_slice().is_empty()) {
        Some(true) => return Err("has an empty common name"),
        None if !named => return Err("has no URI, DNS name or IP address as a SAN, and no common name"),
        _ => {}
    }
    // We have no staple, and Envoy takes the certificate for none of its listeners without.
    if value(&FEATURE)? == Some(&MUST_STAPLE) {
        return Err("must be presented with an OCSP staple (TLS feature status_request), and there is none");
    }
    Ok(())
}

fn check_key(key: &PKeyRef<Public>) -> Result<(), &'static str> {
    match key.id() {
        Id::RSA if key.bits() < LEAST_RSA_BITS => Err("has an RSA key of less than 2048 bits"),
        Id::RSA | Id::ED25519 => Ok(()),
        Id::EC => match locked::curve_of(key) {
            Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1) => Ok(()),
            _ => Err("has an elliptic key that is on none of the curves P-256, P-384 and P-521"),
        },
        _ => Err("has a key that is neither RSA nor elliptic nor Ed25519"),
    }
}
