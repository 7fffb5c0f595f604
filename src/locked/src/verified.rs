//! Signatures that were found good, so that each is verified once. A CA's server presents the same chain at every renewal,
//! and what the CA answers leads over the same intermediate: on P-256 each of these signatures takes OpenSSL 0.75 million
//! instructions.
//!
//! That a key has signed a digest is true for ever, and this knows nothing else: paths, times, names and purposes are
//! looked at each time, by OpenSSL, which asks for one signature after the other.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{Mutex, PoisonError},
};

use foreign_types::ForeignType as _;
use openssl::{bn::BigNum, error::ErrorStack, sha::Sha256};
use openssl_sys::BIGNUM;

/// OpenSSL's own types, of which only pointers are handled here.
type Key = c_void;
type Group = c_void;
type Point = c_void;

/// `verify` of an `EC_KEY_METHOD` (openssl/ec.h): 1 for a good signature.
pub(crate) type EcVerify = unsafe extern "C" fn(c_int, *const u8, c_int, *const u8, c_int, *mut Key) -> c_int;

unsafe extern "C" {
    fn EC_KEY_get0_group(key: *const Key) -> *const Group;
    fn EC_KEY_get0_public_key(key: *const Key) -> *const Point;
    fn EC_GROUP_get_curve_name(group: *const Group) -> c_int;
    fn EC_POINT_get_Jprojective_coordinates_GFp(
        group: *const Group,
        point: *const Point,
        x: *mut BIGNUM,
        y: *mut BIGNUM,
        z: *mut BIGNUM,
        context: *mut c_void,
    ) -> c_int;
}

/// A renewal needs three again, and brings two that never come back: the handshake's own and the new certificate's.
const MOST: usize = 8;

/// SHA-256 of curve, key, digest and signature.
///
/// The key is written as OpenSSL has it, by projective coordinates: one point has many of these, but no two points share any,
/// and the same key is read from a certificate the same way each time. To find the affine ones takes P-256 an inversion, which
/// is an eighth of what a signature takes.
type Fact = [u8; 32];

/// The latest first.
static FACTS: Mutex<Facts> = Mutex::new(Facts { known: [[0; 32]; MOST], len: 0 });

struct Facts {
    known: [Fact; MOST],
    len: usize,
}

impl Facts {
    /// Whether it is known; it is the latest then.
    fn contain(&mut self, fact: &Fact) -> bool {
        let at = self.known[..self.len].iter().position(|known| known == fact);
        if let Some(at) = at {
            self.known[..=at].rotate_right(1);
        }
        at.is_some()
    }

    /// In place of the one that was not asked for the longest.
    fn add(&mut self, fact: Fact) {
        self.len = (self.len + 1).min(MOST);
        self.known[..self.len].rotate_right(1);
        self.known[0] = fact;
    }
}

/// What `verify` says of these, its own arguments, unless it has found them good before.
///
/// # Safety
/// `verify` may be called with them.
pub(crate) unsafe fn once(
    verify: EcVerify,
    kind: c_int,
    (digest, digest_len): (*const u8, c_int),
    (signature, signature_len): (*const u8, c_int),
    key: *mut Key,
) -> c_int {
    // SAFETY: the caller's promise covers what the function reads.
    let said = unsafe { bytes(digest, digest_len) };
    // SAFETY: as above.
    let signed = unsafe { bytes(signature, signature_len) };
    // SAFETY: as above.
    let fact = unsafe { fact(key, said, signed) };
    let facts = || FACTS.lock().unwrap_or_else(PoisonError::into_inner);
    if fact.is_some_and(|fact| facts().contain(&fact)) {
        return 1;
    }
    // SAFETY: the caller's promise is the same.
    let answer = unsafe { verify(kind, digest, digest_len, signature, signature_len, key) };
    if let (1, Some(fact)) = (answer, fact) {
        facts().add(fact);
    }
    answer
}

/// # Safety
/// There are so many bytes, which nobody changes while they are used.
unsafe fn bytes<'a>(start: *const u8, len: c_int) -> &'a [u8] {
    match usize::try_from(len) {
        // SAFETY: the caller has that many bytes there.
        Ok(len) if len > 0 && !start.is_null() => unsafe { std::slice::from_raw_parts(start, len) },
        _ => &[],
    }
}

/// What there is to know of this signature; nothing of a key without a public part, on a curve without a name or over a binary
/// field.
///
/// # Safety
/// The key is one of OpenSSL's.
unsafe fn fact(key: *const Key, digest: &[u8], signature: &[u8]) -> Option<Fact> {
    // SAFETY: the caller says that the key is valid.
    let group = unsafe { EC_KEY_get0_group(key) };
    // SAFETY: as above.
    let point = unsafe { EC_KEY_get0_public_key(key) };
    if group.is_null() || point.is_null() {
        return None;
    }
    // SAFETY: the group is the key's, and lives as long.
    let curve = unsafe { EC_GROUP_get_curve_name(group) };
    if curve == 0 {
        return None;
    }
    // SAFETY: both are the key's.
    let public = unsafe { coordinates(group, point) }?;
    let mut hash = Sha256::new();
    hash.update(&curve.to_le_bytes());
    // Each with its length, so that no byte of one counts as another's.
    for part in public.iter().map(Vec::as_slice).chain([digest, signature]) {
        hash.update(&part.len().to_le_bytes());
        hash.update(part);
    }
    Some(hash.finish())
}

/// The point's projective coordinates.
///
/// # Safety
/// The group is the point's own.
unsafe fn coordinates(group: *const Group, point: *const Point) -> Option<[Vec<u8>; 3]> {
    let (x, y, z) = (BigNum::new().ok()?, BigNum::new().ok()?, BigNum::new().ok()?);
    // SAFETY: the caller says that both belong together, the numbers are ours, and null is no context.
    let found = unsafe {
        EC_POINT_get_Jprojective_coordinates_GFp(group, point, x.as_ptr(), y.as_ptr(), z.as_ptr(), ptr::null_mut())
    };
    if found == 1 {
        return Some([x, y, z].map(|number| number.to_vec()));
    }
    // The next failure would be told with this one's reason.
    drop(ErrorStack::get());
    None
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use foreign_types::ForeignType;
    use openssl::{
        asn1::Asn1Time,
        ec::{EcGroup, EcKey},
        hash::MessageDigest,
        nid::Nid,
        pkey::{PKey, Private},
        x509::{X509, X509Builder},
    };

    use super::*;
    use crate::methods;

    /// Those that look at what is known, or change it, one at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    fn key(curve: Nid) -> EcKey<Private> {
        EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()
    }

    fn ask(verify: EcVerify, digest: &[u8], signature: &[u8], key: &EcKey<Private>) -> c_int {
        let part = |bytes: &[u8]| (bytes.as_ptr(), c_int::try_from(bytes.len()).unwrap());
        // SAFETY: what is passed is valid for the call, and the functions of these tests read none of it.
        unsafe { once(verify, 0, part(digest), part(signature), key.as_ptr().cast()) }
    }

    #[test]
    fn what_was_good_is_not_verified_again_and_what_was_not_is() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn good(_: c_int, _: *const u8, _: c_int, _: *const u8, _: c_int, _: *mut Key) -> c_int {
            CALLS.fetch_add(1, Ordering::Relaxed);
            1
        }
        unsafe extern "C" fn bad(_: c_int, _: *const u8, _: c_int, _: *const u8, _: c_int, _: *mut Key) -> c_int {
            CALLS.fetch_add(1, Ordering::Relaxed);
            0
        }
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = || CALLS.swap(0, Ordering::Relaxed);
        let (ours, another) = (key(Nid::X9_62_PRIME256V1), key(Nid::X9_62_PRIME256V1));
        assert_eq!((ask(bad, b"digest", b"signature", &ours), calls()), (0, 1));
        assert_eq!((ask(bad, b"digest", b"signature", &ours), calls()), (0, 1), "a bad one counts as none");
        assert_eq!((ask(good, b"digest", b"signature", &ours), calls()), (1, 1));
        assert_eq!((ask(bad, b"digest", b"signature", &ours), calls()), (1, 0));
        for (digest, signature, key) in [
            (&b"digesT"[..], &b"signature"[..], &ours),
            (b"digest", b"Signature", &ours),
            (b"digest", b"signature", &another),
            (b"digests", b"ignature", &ours),
            (b"", b"digestsignature", &ours),
            (b"digest", b"signature", &key(Nid::SECP384R1)),
        ] {
            assert_eq!((ask(bad, digest, signature, key), calls()), (0, 1), "{digest:?} {signature:?}");
        }
    }

    #[test]
    fn the_last_few_are_known() {
        let mut facts = Facts { known: [[0; 32]; MOST], len: 0 };
        assert!(!facts.contain(&[0; 32]), "nothing is known at first");
        for number in 1..=20 {
            facts.add([number; 32]);
            // As the CA's chain is, among what comes once.
            assert!(facts.contain(&[1; 32]));
        }
        let known: Vec<_> = facts.known.iter().map(|fact| fact[0]).collect();
        assert_eq!(known, [1, 20, 19, 18, 17, 16, 15, 14]);
    }

    /// A certificate for a key of its own, by this key, and the same with another signature.
    fn certificates(issuer: &PKey<Private>) -> (X509, X509) {
        let mut builder = X509Builder::new().unwrap();
        builder.set_pubkey(&PKey::from_ec_key(key(Nid::X9_62_PRIME256V1)).unwrap()).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(issuer, MessageDigest::sha256()).unwrap();
        let good = builder.build();
        let mut der = good.to_der().unwrap();
        *der.last_mut().unwrap() ^= 1;
        (good, X509::from_der(&der).unwrap())
    }

    #[test]
    fn openssl_asks_for_each_signature() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        methods::prepare();
        let issuer = PKey::from_ec_key(key(Nid::X9_62_PRIME256V1)).unwrap();
        // As a certificate's key is read.
        let public = PKey::public_key_from_der(&issuer.public_key_to_der().unwrap()).unwrap();
        let (good, bad) = certificates(&issuer);
        for _ in 0..2 {
            assert!(good.verify(&public).unwrap());
            assert!(!bad.verify(&public).unwrap_or(false), "another signature is another fact");
        }
        let facts = || *FACTS.lock().unwrap().known.first().unwrap();
        let before = facts();
        let (next, _) = certificates(&issuer);
        assert!(next.verify(&public).unwrap());
        assert_ne!(facts(), before, "OpenSSL does not ask here");
    }
}
