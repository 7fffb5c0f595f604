//! PEM texts with trust anchors: any text, in which `\x01` to `\x04` stand for certificates.
#![no_main]

use std::sync::LazyLock;

use fuzz::{Authority, NOW};
use libfuzzer_sys::fuzz_target;
use sds_shim::identity::{PemError, TrustBundle, certificates};

static ANCHORS: LazyLock<[String; 4]> =
    LazyLock::new(|| [1, 2, 3, 4].map(|number| Authority::new(&format!("anchor {number}")).pem()));

fuzz_target!(|data: &[u8]| {
    let mut text = String::from_utf8_lossy(data).into_owned();
    let foreign = ["BEGIN", "END", "---"].iter().any(|part| text.contains(part));
    let mut expected = Vec::new();
    for character in text.chars().filter(|character| ('\x01'..='\x04').contains(character)) {
        expected.push(character as usize - 1);
    }
    for (number, anchor) in ANCHORS.iter().enumerate() {
        text = text.replace(char::from(number as u8 + 1), anchor);
    }

    let blocks = text.matches("-----BEGIN CERTIFICATE-----").count();
    match certificates(&text) {
        Ok(found) => assert!((1..=blocks).contains(&found.len())),
        Err(PemError::Empty) => assert_eq!(blocks, 0),
        Err(
            PemError::Malformed { position } | PemError::NoAnchor { position, .. } | PemError::Refused { position, .. },
        ) => assert!((1..=blocks).contains(&position)),
        Err(PemError::Form(_)) => assert!(foreign || expected.is_empty(), "good certificates are refused"),
        Err(PemError::File(cause)) => panic!("there is no file: {cause}"),
        Err(PemError::TooMany) => assert!(blocks > 16),
        Err(PemError::TooLarge { position }) => assert!(text.len() > 512 && (1..=blocks).contains(&position)),
        Err(PemError::NoRoom { .. }) => panic!("there is no arena here that could be full"),
    }
    let (bundle, bad) = match TrustBundle::from_pem(&text, NOW) {
        Ok(taken) => taken,
        Err(PemError::Empty) => return assert_eq!(blocks, 0),
        Err(PemError::Form(_)) => return assert!(foreign || expected.is_empty(), "good certificates are refused"),
        Err(
            PemError::Malformed { position } | PemError::NoAnchor { position, .. } | PemError::Refused { position, .. },
        ) => {
            assert!((1..=blocks).contains(&position));
            return assert!(foreign || expected.is_empty(), "good certificates are refused");
        }
        Err(error) => panic!("{error}"),
    };
    assert!(foreign || bad.is_empty(), "good certificates are left out");
    assert!(bundle.anchors().len() + bad.len() <= blocks, "something is both taken and left out");
    let told = pem(&bundle);
    assert!(told.lines().all(|line| !line.is_empty()) && told.ends_with('\n'));
    let (again, bad) = TrustBundle::from_pem(&told, NOW).expect("it reads what it wrote");
    assert!(bad.is_empty() && again.is_same_set(&bundle));
    assert_eq!(pem(&again), told);
    if !foreign {
        // Each once, in the order in which they came.
        let mut once = Vec::new();
        expected.into_iter().for_each(|number| {
            if !once.contains(&number) {
                once.push(number);
            }
        });
        assert_eq!(told, once.into_iter().map(|number| ANCHORS[number].as_str()).collect::<String>());
    }
});

fn pem(bundle: &TrustBundle) -> String {
    String::from_utf8(bundle.certificates().pem).expect("PEM is ASCII")
}
