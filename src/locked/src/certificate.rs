use std::ffi::{c_char, c_int};

use foreign_types::ForeignTypeRef as _;
use openssl::{
    error::ErrorStack,
    nid::Nid,
    pkey::{HasParams, PKeyRef},
    x509::X509Ref,
};
use openssl_sys::EVP_PKEY;

// openssl-sys leaves this out.
unsafe extern "C" {
    fn EVP_PKEY_get_group_name(key: *const EVP_PKEY, name: *mut c_char, size: usize, len: *mut usize) -> c_int;
}

/// Bytes of the longest name of a curve that any OpenSSL has, and more.
const LONGEST_NAME: usize = 64;

/// The named curve of a public key, without a copy of the key in the form of OpenSSL before 3.0, which
/// [`PKeyRef::ec_key`] makes for it. None of a key on no curve, or on one without a name.
#[must_use]
pub fn curve_of<T: HasParams>(key: &PKeyRef<T>) -> Option<Nid> {
    let (mut name, mut len) = ([0_u8; LONGEST_NAME], 0);
    // SAFETY: the key is valid for as long as it is borrowed, and the name gets as many bytes as there are, with a zero.
    let found = unsafe { EVP_PKEY_get_group_name(key.as_ptr(), name.as_mut_ptr().cast(), name.len(), &raw mut len) };
    if found != 1 {
        drop(ErrorStack::get());
        return None;
    }
    // SAFETY: the name ends with a zero.
    let nid = unsafe { openssl_sys::OBJ_sn2nid(name.as_ptr().cast()) };
    (nid != 0).then(|| Nid::from_raw(nid))
}

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

#[cfg(test)]
mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        pkey::PKey,
        rsa::Rsa,
    };

    use super::*;

    #[test]
    fn a_curve_is_known_by_its_number() {
        for curve in [Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1, Nid::SECP256K1] {
            let key = EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap();
            let key = PKey::from_ec_key(key).unwrap();
            assert_eq!(curve_of(&key), Some(curve));
            // As a certificate's key is read.
            let public = PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap();
            assert_eq!(curve_of(&public), Some(curve));
        }
        for key in [PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(), PKey::generate_ed25519().unwrap()] {
            assert_eq!(curve_of(&key), None);
            assert!(ErrorStack::get().errors().is_empty(), "the next failure would be told with this one's reason");
        }
    }
}
