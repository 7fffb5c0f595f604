//! What parses certificates and revocation lists, with the arena filled to each step up to its end: what finds no room is
//! refused as that, and never ends the process.

use locked::{LockedAllocator, usage};
use sds_shim::identity::{PemError, RevocationList, TrustBundle, certificates};
use testkit::{
    der::{extensions, names, parts, pem, purposes, revocations, tiny},
    development_ca::{Leaf, Pki},
};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

/// When it takes place, in Unix seconds.
const NOW: i64 = 1_795_000_000;
/// How much less is free each time.
const STEP: usize = 24 * 1024;
/// What the test itself needs.
const LEAST: usize = 48 * 1024;

/// Takes memory in blocks of this size until no more than so many bytes are free.
fn fill(block: usize, leave: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(usage().capacity / block);
    while usage().capacity - usage().used > leave + block {
        let mut one = Vec::new();
        if one.try_reserve_exact(block).is_err() {
            break;
        }
        held.push(one);
    }
    held
}

/// One test, because all share one arena and OpenSSL is adopted once.
#[test]
fn input_without_room_is_rejected() {
    // The standard library's hook would look for symbols: with more memory than the arena has, so it would hang.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    locked::adopt_openssl().expect("nothing has used it yet");
    let pki = Pki::new("full");
    let leaf = pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", std::time::Duration::from_secs(3600)));
    let texts = [
        ("ordinary", leaf.chain_pem + &pki.root_pem()),
        ("names", pem("CERTIFICATE", &names(480)).repeat(4)),
        ("parts", pem("CERTIFICATE", &parts(110)).repeat(4)),
        ("purposes", pem("CERTIFICATE", &purposes(480)).repeat(4)),
        ("extensions", pem("CERTIFICATE", &extensions(150)).repeat(4)),
        ("tiny", pem("CERTIFICATE", &tiny()).repeat(16)),
    ];
    let lists = [
        pki.crl(&[], 600) + &pki.root_crl(&[], 600),
        pem("X509 CRL", &revocations(500)),
        pem("X509 CRL", &revocations(1500)),
        pem("X509 CRL", &revocations(3500)),
    ];
    let (mut taken, mut refused) = (0, 0);
    // In large blocks, and in such that leave gaps between them.
    for block in [16 * 1024, 1024] {
        let mut leave = usage().capacity - usage().used;
        while leave > LEAST {
            let held = fill(block, leave);
            let mut count = |is_taken: bool| *(if is_taken { &mut taken } else { &mut refused }) += 1;
            for (what, text) in &texts {
                match certificates(text) {
                    // What is taken is looked at, too: OpenSSL keeps what the extensions say, of the leaf first.
                    Ok(found) => {
                        let told = found[0].subject_alt_names().map_or(0, |names| names.len());
                        assert!(*what != "names" || told == 480, "{told} names with {leave} bytes free");
                        for one in &found {
                            let _ = one.issued(one);
                            count(true);
                        }
                    }
                    Err(PemError::NoRoom { .. }) => count(false),
                    Err(error) => panic!("{what} with {leave} bytes free: {error}"),
                }
                match TrustBundle::from_pem(text, NOW) {
                    Ok(_) => count(true),
                    Err(PemError::NoRoom { .. }) => count(false),
                    Err(error) => panic!("{what} with {leave} bytes free: {error}"),
                }
            }
            for text in &lists {
                match RevocationList::all(text.as_bytes()) {
                    Ok(_) => count(true),
                    Err(error) => {
                        assert!(error.starts_with("not enough arena memory"), "with {leave} bytes free: {error}");
                        count(false);
                    }
                }
            }
            drop(held);
            leave -= STEP;
        }
    }
    println!("{taken} times taken, {refused} times refused");
    assert!(taken > 100 && refused > 100, "{taken} times taken, {refused} times refused");
}
