//! Mounted files: a key and a chain in one text or two, read in portions. In it `\x01` stands for the key as PKCS#8, `\x02`
//! for the same as SEC 1, `\x03` for its certificate, `\x04` for that of its issuer.
#![no_main]

use std::{
    io::{self, Read},
    sync::LazyLock,
};

use fuzz::{Authority, NOW, Request, pem};
use libfuzzer_sys::fuzz_target;
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    nid::Nid,
    pkey::{PKey, Private},
    sha::sha256,
};
use sds_shim::identity::{Credential, KeyText, TrustBundle};

/// More than any text here has.
const LIMIT: usize = 1 << 20;

struct Texts {
    pkcs8: String,
    sec1: String,
    leaf: String,
    issuer: String,
    key: PKey<Private>,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let number = BigNum::from_slice(&sha256(b"ours")).expect("a number");
    let mut point = EcPoint::new(&group).expect("a point");
    point.mul_generator2(&group, &number, &mut BigNumContext::new().expect("room")).expect("a point");
    let ec = EcKey::from_private_components(&group, &number, &point).expect("a key");
    let text = |pem: Vec<u8>| String::from_utf8(pem).expect("PEM is ASCII");
    let sec1 = text(ec.private_key_to_pem().expect("room"));
    let key = PKey::from_ec_key(ec).expect("a key");
    let issuer = Authority::new("issuer");
    let leaf = issuer.sign(&Request { name: Some("leaf"), key: &key, validity: (NOW - 60, NOW + 60), extensions: &[] });
    let pkcs8 = text(key.private_key_to_pem_pkcs8().expect("room"));
    Texts { pkcs8, sec1, leaf: pem(&leaf), issuer: issuer.pem(), key }
});

/// A text that comes in portions.
struct Portions<'a>(&'a [u8], usize);

impl Read for Portions<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(buffer.len()).min(self.0.len());
        let (now, later) = self.0.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.0 = later;
        Ok(length)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((size, text)) = data.split_first() else { return };
    let texts = &*TEXTS;
    let mut text = String::from_utf8_lossy(text).into_owned();
    let foreign = ["BEGIN", "END", "---"].iter().any(|part| text.contains(part));
    let keys = text.matches(['\x01', '\x02']).count();
    let leaves = text.matches('\x03').count();
    for (mark, what) in
        ['\x01', '\x02', '\x03', '\x04'].iter().zip([&texts.pkcs8, &texts.sec1, &texts.leaf, &texts.issuer])
    {
        text = text.replace(*mark, what);
    }

    let split = |size| KeyText::split(Portions(text.as_bytes(), size), text.len(), LIMIT).expect("there is room");
    let (public, key) = split(usize::from(*size) + 1);
    let (whole, same) = split(LIMIT);
    assert_eq!(public, whole, "the portions make a difference");
    let (parsed, again) = (key.parse(), same.parse());
    assert_eq!(parsed.is_ok(), again.is_ok(), "the portions make a difference");
    // The end of a key without a proper marker may lie within a character.
    let Ok(public) = String::from_utf8(public) else { return assert!(foreign) };
    if !foreign {
        let secret = |pem: &str| pem.lines().nth(1).expect("its first line").to_owned();
        assert!(!public.contains(&secret(&texts.pkcs8)) && !public.contains(&secret(&texts.sec1)), "a key is left");
        assert!(keys == 0 || parsed.is_ok_and(|key| key.public_eq(&texts.key)), "a good key is refused");
    }
    match Credential::from_pem(&public, &key) {
        Ok(credential) => {
            assert!(leaves > 0 || foreign);
            let (bundle, _) = TrustBundle::from_pem(&texts.issuer, NOW).expect("a good anchor");
            let _ = credential.flaws("/dev/null".as_ref(), &bundle, NOW);
            assert!(credential.others().len() < 16);
            assert!(credential.chain().is_ok() && credential.identity().is_none());
        }
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "it is not one line: {error}");
            let good = keys > 0 && leaves == 1 && !foreign && text.matches("BEGIN CERTIFICATE").count() <= 16;
            assert!(!good, "good files are refused: {error}");
        }
    }
});
