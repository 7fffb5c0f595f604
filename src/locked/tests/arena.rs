//! The arena as this test's own allocator, and as OpenSSL's.

use std::{alloc::Layout, hint::black_box, thread};

use locked::{LockedAllocator, for_each_arena_byte_range, for_the_tables_bytes, has_room, usage};
use openssl::{
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    sign::{Signer, Verifier},
    ssl::{SslContext, SslMethod},
};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

/// Occurrences of `!masked` in the arena: the pattern itself is nowhere for the search.
fn occurrences(masked: &[u8]) -> usize {
    let mut found = 0;
    for_each_arena_byte_range(|bytes| {
        found += occurrences_in(bytes, masked);
    });
    found
}

fn occurrences_in(bytes: &[u8], masked: &[u8]) -> usize {
    bytes.windows(masked.len()).filter(|window| window.iter().zip(masked).all(|(a, b)| *a == !*b)).count()
}

fn invert(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = !*byte;
    }
}

/// One test, because all share one arena and OpenSSL is adopted once.
#[test]
fn rust_and_openssl_live_in_the_arena_and_leave_nothing() {
    // The standard library's hook would look for symbols: with more memory than the arena has, so it would hang.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    locked::adopt_openssl().unwrap();
    openssls_tables_are_elsewhere();
    an_openssl_key_is_in_the_arena();
    a_vector_that_grew_leaves_nothing();
    threads_share_it();
    a_full_arena_refuses_and_an_extension_helps();
}

/// All of the kinds of algorithms that making a key, using it and reading certificates need.
fn openssls_tables_are_elsewhere() {
    let before = usage().used;
    locked::fill_openssl_tables();
    // Whichever OpenSSL this is, and however much it has.
    let filled = usage().used;
    for_the_tables_bytes(|bytes| assert!(bytes.iter().filter(|byte| **byte != 0).count() > 50_000));
    println!("{} bytes of tables found no room", filled - before);
    // Its lists of all names are left out: who verifies a signature looks up its digest there.
    for name in ["SHA1", "SHA224", "SHA256", "SHA384", "SHA512", "SHA3-224", "SHA3-256", "SHA3-384", "SHA3-512"] {
        assert!(MessageDigest::from_name(name).is_some(), "{name}");
    }
    let key = PKey::from_ec_key(ec_key()).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    let signature = signer.sign_oneshot_to_vec(b"text").unwrap();
    assert!(Verifier::new(MessageDigest::sha256(), &key).unwrap().verify_oneshot(&signature, b"text").unwrap());
    let public = key.public_key_to_der().unwrap();
    PKey::public_key_from_der(&public).unwrap();
    SslContext::builder(SslMethod::tls_client()).unwrap();
    drop((signer, key));
    let more = usage().used - filled;
    assert!(more < 80_000, "{more} bytes more in the arena: some tables are made later");
}

fn ec_key() -> EcKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    EcKey::generate(&group).unwrap()
}

fn an_openssl_key_is_in_the_arena() {
    let key = ec_key();
    let mut scalar = key.private_key().to_vec();
    // OpenSSL keeps numbers in words of its machine's order; the low half of the words is long enough.
    scalar.reverse();
    invert(&mut scalar);
    assert!(occurrences(&scalar[..16]) > 0, "the key is not in the arena");
    for_the_tables_bytes(|bytes| assert_eq!(occurrences_in(bytes, &scalar[..16]), 0, "it is where no key should be"));
    let mut pem = key.private_key_to_pem().unwrap();
    let mut middle = pem[60..90].to_vec();
    invert(&mut middle);
    assert_eq!(occurrences(&middle), 1, "one PEM is there, and no remains of its making");
    invert(&mut pem);
    drop((pem, key));
    assert_eq!(occurrences(&scalar[..16]), 0, "the key outlived its owner");
}

fn a_vector_that_grew_leaves_nothing() {
    let mut masked = *b"a pattern of the vector that grows";
    invert(&mut masked);
    let mut vector = Vec::new();
    let mut others = Vec::new();
    for round in 0..2_000 {
        vector.extend(masked.iter().map(|byte| !byte));
        // What lies behind the vector makes it move.
        others.push(vec![0_u8; round % 97 + 1]);
    }
    // A copy stands where two of it in a row begin one.
    assert_eq!(occurrences(&masked), 2_000);
    vector.truncate(masked.len());
    vector.shrink_to_fit();
    assert_eq!(occurrences(&masked), 1);
    drop(black_box(vector));
    assert_eq!(occurrences(&masked), 0);
}

fn threads_share_it() {
    let before = usage().used;
    let work = |seed: usize| {
        for round in 0..20_000 {
            let bytes = black_box(vec![seed as u8; (round * 31 + seed * 7) % 900 + 1]);
            assert!(bytes.iter().all(|byte| *byte == seed as u8));
        }
    };
    thread::scope(|scope| {
        for seed in 1..4 {
            scope.spawn(move || work(seed));
        }
    });
    assert!(usage().used < before + 4_096, "{} then {:?}", before, usage());
}

fn a_full_arena_refuses_and_an_extension_helps() {
    let before = usage();
    assert!(has_room(&[before.capacity / 4, before.capacity / 4]), "{before:?}");
    assert!(!has_room(&[before.capacity / 4; 4]), "{before:?}");
    assert_eq!(usage().used, before.used, "the question left something behind");
    let mut large: Vec<u8> = Vec::new();
    assert!(large.try_reserve_exact(3 << 20).is_err());
    // A root without limits, or a limit that holds it: elsewhere there is no more to be had of the same kind.
    match locked::extend(4 << 20) {
        Ok(()) => {
            assert!(usage().capacity >= before.capacity + (4 << 20) - Layout::new::<[u64; 8]>().size());
            large.try_reserve_exact(3 << 20).unwrap();
            large.resize(3 << 20, 7);
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory),
    }
}
