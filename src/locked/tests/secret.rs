//! Where key material is: on pages of secret memory alone, while it lives, and nowhere afterwards.

use locked::{
    LockedAllocator, Need, Structure, for_each_arena_byte_range, for_each_secret_byte_range, for_the_tables_bytes,
    read_private_key, secret_stack_peak, secret_usage, secretly, write_private_key,
};
use openssl::{
    bn::BigNumRef,
    hash::MessageDigest,
    nid::Nid,
    pkey::{Id, PKey, Private},
    sign::{Signer, Verifier},
    x509::{X509NameBuilder, X509ReqBuilder},
};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

/// Bytes of a needle.
const LEN: usize = 16;

/// Each needle inverted, so that the search does not find its own.
#[derive(Default)]
struct Needles(Vec<[u8; LEN]>);

impl Needles {
    /// A number as it is written, and as OpenSSL keeps it: words of the machine's order, the least first.
    fn add_number(&mut self, number: &BigNumRef) {
        let mut bytes = number.to_vec();
        for _ in 0..2 {
            self.add(&bytes);
            bytes.reverse();
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.chunks_exact(LEN).map(|part| std::array::from_fn(|at| !part[at])));
    }

    fn count(&self, bytes: &[u8]) -> usize {
        // How a needle can begin: most places are passed over with one look.
        let mut begins = vec![false; 1 << 16];
        for needle in &self.0 {
            begins[usize::from(u16::from_ne_bytes([!needle[0], !needle[1]]))] = true;
        }
        let is_needle = |window: &&[u8]| {
            begins[usize::from(u16::from_ne_bytes([window[0], window[1]]))]
                && self.0.iter().any(|needle| needle.iter().zip(*window).all(|(a, b)| *a == !*b))
        };
        bytes.windows(LEN).filter(is_needle).count()
    }

    fn in_the_arena(&self) -> usize {
        let mut found = 0;
        for_each_arena_byte_range(|bytes| found += self.count(bytes));
        for_the_tables_bytes(|bytes| found += self.count(bytes));
        found
    }

    fn in_secret_memory(&self) -> usize {
        let mut found = 0;
        for_each_secret_byte_range(|bytes| found += self.count(bytes));
        found
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ec(Nid),
    Rsa(u32),
}

fn generate(kind: Kind) -> PKey<Private> {
    match kind {
        Kind::Ec(curve) => locked::generate_ec_key(curve).unwrap(),
        Kind::Rsa(bits) => locked::generate_rsa_key(bits).unwrap(),
    }
}

/// All needles are made in secret memory, so that no trace of this test's own is elsewhere.
fn needles(key: &PKey<Private>) -> Needles {
    let mut needles = Needles::default();
    secretly(|| match key.id() {
        Id::EC => needles.add_number(key.ec_key().unwrap().private_key()),
        _ => {
            let rsa = key.rsa().unwrap();
            for number in [Some(rsa.d()), rsa.p(), rsa.q(), rsa.dmp1(), rsa.iqmp()] {
                needles.add_number(number.unwrap());
            }
        }
    });
    needles
}

fn peak(what: &str) {
    println!("{what}: {:?}, stack {}", secret_usage(), secret_stack_peak());
}

/// What the shim does with a key.
fn leaves_nothing(kind: Kind) {
    let key = generate(kind);
    sign(&key);
    let pem = write_private_key(&key, Structure::Pkcs8).unwrap();
    sign(&read_private_key(&pem).unwrap());
    assert!(read_private_key(&pem[..pem.len() / 2]).is_err());
    drop((key, pem));
    assert_eq!(secret_usage().used, 0, "{kind:?}: something that is no key was made among keys, and stays");
}

fn life_of(kind: Kind) {
    println!("{kind:?}");
    let key = generate(kind);
    peak("  generated");
    sign(&key);
    peak("  signed");
    let mut pem = write_private_key(&key, Structure::Pkcs8).unwrap();
    peak("  written");
    let read = read_private_key(&pem).unwrap();
    peak("  read");
    sign(&read);
    peak("  signed with what was read");
    let mut needles = needles(&key);
    peak("  needles");
    needles.add(&pem[60..]);
    assert_eq!(needles.in_the_arena(), 0, "{kind:?}: key material is outside of secret memory");
    assert!(needles.in_secret_memory() > needles.0.len() / 2, "{kind:?}: the search finds nothing");
    pem.fill(0);
    drop((key, read, pem));
    assert_eq!(needles.in_secret_memory(), 0, "{kind:?}: the key outlived its owners");
    assert_eq!(needles.in_the_arena(), 0, "{kind:?}");
    drop(needles);
    peak("  gone");
}

/// Outside of the scope, as TLS does it.
fn sign(key: &PKey<Private>) {
    let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
    let signature = signer.sign_oneshot_to_vec(b"text").unwrap();
    assert!(Verifier::new(MessageDigest::sha256(), key).unwrap().verify_oneshot(&signature, b"text").unwrap());
    let mut request = X509ReqBuilder::new().unwrap();
    request.set_pubkey(key).unwrap();
    request.set_subject_name(&X509NameBuilder::new().unwrap().build()).unwrap();
    request.sign(key, MessageDigest::sha256()).unwrap();
    request.build().to_pem().unwrap();
}

#[test]
fn keys_live_and_die_in_secret_memory() {
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    locked::adopt_openssl().unwrap();
    locked::fill_openssl_tables();
    locked::open_secret_memory(Need::Most);
    peak("opened");
    if secret_usage().charged == 0 {
        println!("no secret memory here: nothing to look at");
        return;
    }
    // What a process with such keys is given: 32 KiB of which 10 are stack, and 64 of which 14 are.
    for (kinds, heap, stack) in [
        ([Kind::Ec(Nid::X9_62_PRIME256V1), Kind::Ec(Nid::SECP384R1)], 22 << 10, 10 << 10),
        ([Kind::Rsa(2048), Kind::Rsa(4096)], 50 << 10, 14 << 10),
    ] {
        kinds.into_iter().for_each(leaves_nothing);
        kinds.into_iter().for_each(life_of);
        assert!(secret_usage().peak <= heap, "{:?}", secret_usage());
        assert!(secret_stack_peak() <= stack - (2 << 10), "{} bytes of stack", secret_stack_peak());
        assert_eq!(secret_usage().spilled, 0);
    }
    life_of(Kind::Ec(Nid::SECP521R1));
    without_room_keys_lie_in_the_arena_and_come_back();
}

/// More keys than there is room for: they are in the arena, which says so, until they are gone.
fn without_room_keys_lie_in_the_arena_and_come_back() {
    let keys: Vec<_> = (0..40).map(|_| generate(Kind::Ec(Nid::X9_62_PRIME256V1))).collect();
    let needles = needles(&keys[39]);
    assert!(secret_usage().spilled > 0 && !locked::keys_are_secret(), "{:?}", secret_usage());
    assert_eq!(secret_usage().charged, 64 << 10, "no more is taken");
    assert!(needles.in_the_arena() > 0, "the search finds nothing in the arena");
    sign(&keys[39]);
    let before = locked::usage().used;
    drop(keys);
    assert_eq!((needles.in_the_arena(), needles.in_secret_memory()), (0, 0), "a key outlived its owner");
    assert_eq!(secret_usage().spilled, 0);
    assert!(locked::keys_are_secret() && locked::usage().used < before, "the arena has its memory back");
}
