//! Where key material is: on pages of secret memory alone, while it lives, and nowhere afterwards.

use std::sync::atomic::{AtomicUsize, Ordering};

use locked::{
    LockedAllocator, Need, SecretUsage, Structure, for_each_arena_byte_range, for_each_secret_byte_range,
    for_the_tables_bytes, forget_secret_peak, pkcs8, read_pkcs8, read_private_key, secret_stack_peak, secret_usage,
    secretly, write_private_key,
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

/// Does something with keys and says what it takes: more than before while it runs, and more than before afterwards.
fn step<R>(what: &str, act: impl FnOnce() -> R) -> R {
    let before = secret_usage().used;
    forget_secret_peak();
    let result = act();
    let SecretUsage { used, peak, .. } = secret_usage();
    MOST.fetch_max(peak, Ordering::Relaxed);
    let (during, after) = (peak - before, used.cast_signed() - before.cast_signed());
    println!("  {what}: {during} bytes during it, {after} after it; stack {} at the most yet", secret_stack_peak());
    result
}

/// The most that was in use in any step.
static MOST: AtomicUsize = AtomicUsize::new(0);

/// What the shim does with a key.
fn leaves_nothing(kind: Kind) {
    let key = generate(kind);
    sign(&key);
    let pem = write_private_key(&key, Structure::Pkcs8).unwrap();
    sign(&read_private_key(&pem).unwrap());
    assert!(read_private_key(&pem[..pem.len() / 2]).is_err());
    let der = pkcs8(&pem).unwrap();
    // There is no room for all of them with RSA 4096.
    drop(pem);
    sign(&read_pkcs8(&der).unwrap());
    assert!(read_pkcs8(&der[..der.len() / 2]).is_err() && read_pkcs8(&[]).is_err());
    drop((key, der));
    assert_eq!(secret_usage().used, 0, "{kind:?}: something that is no key was made among keys, and stays");
}

fn life_of(kind: Kind) {
    println!("{kind:?}");
    let key = step("the key is made", || generate(kind));
    step("it signs for the first time", || sign(&key));
    step("it signs again", || sign(&key));
    let key = step("it is kept as if new", || locked::as_if_new(key).unwrap());
    let mut pem = step("it is written as PEM", || write_private_key(&key, Structure::Pkcs8).unwrap());
    let read = step("it is read from PEM", || read_private_key(&pem).unwrap());
    step("what was read signs", || sign(&read));
    let mut needles = needles(&key);
    needles.add(&pem[60..]);
    assert_eq!(needles.in_the_arena(), 0, "{kind:?}: key material is outside of secret memory");
    assert!(needles.in_secret_memory() > needles.0.len() / 2, "{kind:?}: the search finds nothing");
    pem.fill(0);
    drop((key, read, pem));
    assert_eq!(needles.in_secret_memory(), 0, "{kind:?}: the key outlived its owners");
    assert_eq!(needles.in_the_arena(), 0, "{kind:?}");
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
    without_secret_memory_a_thread_runs_in_the_arena();
    locked::open_secret_memory(Need::Most);
    if secret_usage().charged == 0 {
        println!("no secret memory here: nothing to look at");
        return;
    }
    // What a process with such keys is given: 32 KiB of which 10 are stack, and 64 of which 12 are.
    for (kinds, heap, stack) in [
        ([Kind::Ec(Nid::X9_62_PRIME256V1), Kind::Ec(Nid::SECP384R1)], 22 << 10, 10 << 10),
        ([Kind::Rsa(2048), Kind::Rsa(4096)], 52 << 10, 12 << 10),
    ] {
        kinds.into_iter().for_each(leaves_nothing);
        kinds.into_iter().for_each(life_of);
        let most = MOST.load(Ordering::Relaxed);
        assert!(most <= heap, "{most} of {heap} bytes");
        assert!(secret_stack_peak() <= stack - (2 << 10), "{} bytes of stack", secret_stack_peak());
        assert_eq!(secret_usage().spilled, 0);
    }
    there_is_room_for_the_next_key_beside_one(Kind::Rsa(4096));
    life_of(Kind::Ec(Nid::SECP521R1));
    two_threads_run_in_secret_memory_one_after_the_other();
    without_room_keys_lie_in_the_arena_and_come_back();
}

/// As in renewals: the last key has signed its request, and is served while the next one is made.
fn there_is_room_for_the_next_key_beside_one(kind: Kind) {
    let mut kept = None;
    for _ in 0..3 {
        let key = step("a key is made beside another", || generate(kind));
        step("it signs", || sign(&key));
        let key = locked::as_if_new(key).unwrap();
        if let Some((last, _)) = &kept {
            step("the other signs", || sign(last));
        }
        let pem = step("it is written", || write_private_key(&key, Structure::Pkcs8).unwrap());
        let served = secretly(|| pem.clone());
        drop(pem);
        kept = Some((key, served));
        assert_eq!(locked::secret_misses(), 0, "{:?}", secret_usage());
    }
}

type Look<'a> = &'a mut dyn FnMut(&[u8]);

/// Whether the caller runs on a stack in one of these places.
fn runs_in(each: fn(Look<'_>)) -> bool {
    let here = std::ptr::without_provenance(psm::stack_pointer().addr());
    let mut found = false;
    each(&mut |bytes| found |= bytes.as_ptr_range().contains(&here));
    found
}

fn runs_in_secret_memory() -> bool {
    runs_in(|look| for_each_secret_byte_range(|bytes| look(bytes)))
}

fn without_secret_memory_a_thread_runs_in_the_arena() {
    let on_the_arena = || runs_in(|look| for_each_arena_byte_range(|bytes| look(bytes)));
    let found = std::thread::spawn(move || secretly(on_the_arena)).join().unwrap();
    assert!(found, "a key operation ran on a thread's own stack, which nobody wipes");
}

fn two_threads_run_in_secret_memory_one_after_the_other() {
    use std::{sync::mpsc, thread, time::Duration};

    let ((inside, is_inside), (go, may_go)) = (mpsc::channel(), mpsc::channel());
    let first = thread::spawn(move || {
        secretly(|| {
            inside.send(()).unwrap();
            may_go.recv().unwrap();
            runs_in_secret_memory()
        })
    });
    is_inside.recv().unwrap();
    let second = thread::spawn(|| secretly(runs_in_secret_memory));
    // It can only be seen not to end; where it does not wait, it ends at once.
    thread::sleep(Duration::from_millis(50));
    let waits = !second.is_finished();
    go.send(()).unwrap();
    assert_eq!((first.join().unwrap(), second.join().unwrap()), (true, true), "a key operation ran on another stack");
    assert!(waits, "two threads ran on the stack at the same time");
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
