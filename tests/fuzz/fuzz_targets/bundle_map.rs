//! SPIFFE bundle maps, and certificates in DER one after the other: any bytes, in which `\x01` to `\x04` stand for
//! certificates.
#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fuzz::{Authority, NOW};
use libfuzzer_sys::fuzz_target;
use sds_shim::identity::{BundleMap, PemError, TrustBundle};

static ANCHORS: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    [1, 2, 3, 4].map(|number| {
        let pem = Authority::new(&format!("anchor {number}")).pem();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        STANDARD.decode(base64).expect("it is PEM")
    })
});

fuzz_target!(|data: &[u8]| match data {
    [b'#', der @ ..] => der_after_der(der),
    text => map(text),
});

fn map(data: &[u8]) {
    let mut text = String::from_utf8_lossy(data).into_owned();
    for (number, anchor) in ANCHORS.iter().enumerate() {
        let key = format!("{{\"use\":\"x509-svid\",\"x5c\":[\"{}\"]}}", STANDARD.encode(anchor));
        text = text.replace(char::from(number as u8 + 1), &key);
    }
    let map = match BundleMap::read(&text, NOW, |_| true) {
        Ok(map) => map,
        Err(why) => return assert!(!why.contains(char::is_control), "it is not one line: {why}"),
    };
    let names: Vec<_> = map.domains.iter().map(|(domain, _)| domain.to_string()).collect();
    assert!(names.is_sorted() && names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    assert!(map.domains.iter().all(|(_, bundle)| !bundle.anchors().is_empty()));
    assert!(map.unusable.iter().all(|domain| !names.contains(&domain.to_string())), "usable and not");
    assert!(map.bad.iter().all(|bad| !bad.contains(char::is_control)), "{:?}", map.bad);
    assert!(map.unusable.is_empty() || !map.bad.is_empty(), "it is not told why");
}

fn der_after_der(data: &[u8]) {
    let (mut der, mut own) = (Vec::new(), true);
    for byte in data {
        match ANCHORS.get(usize::from(*byte).wrapping_sub(1)) {
            Some(anchor) => der.extend_from_slice(anchor),
            None => {
                own = false;
                der.push(*byte);
            }
        }
    }
    let (bundle, bad) = match TrustBundle::from_der(&der, NOW, |_| true) {
        Ok(read) => read,
        Err(PemError::Empty) => return assert!(der.is_empty()),
        Err(error) => return assert!(!own, "good certificates are refused: {error}"),
    };
    assert!(!own || bad.is_empty(), "good certificates are left out");
    assert!(bundle.anchors().iter().all(|anchor| der.windows(anchor.der().len()).any(|part| part == anchor.der())));
    let again: Vec<u8> = bundle.anchors().iter().flat_map(|anchor| anchor.der()).copied().collect();
    let (again, bad) = TrustBundle::from_der(&again, NOW, |_| true).expect("it reads what it has kept");
    assert!(bad.is_empty() && again.is_same_set(&bundle));
}
