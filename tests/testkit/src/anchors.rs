//! Trust anchors by the hundred.

use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    ec::{EcGroup, EcKey},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    x509::{X509, X509Name, extension::BasicConstraints},
};

use crate::{Failure, OrFail};

/// Roots whose names are as long as those of some public CAs, PEM: each takes 228 bytes.
pub fn with_long_names(count: usize) -> Result<Vec<String>, Failure> {
    let make = || -> Result<_, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
        (0..count).map(|number| root(number, &key)).collect()
    };
    make().or_fail("make roots")
}

fn root(number: usize, key: &PKey<Private>) -> Result<String, ErrorStack> {
    let mut name = X509Name::builder()?;
    // The longest that these may be (RFC 5280, appendix A.1).
    for field in ["O", "OU", "CN"] {
        name.append_entry_by_text(field, &format!("{number:064}"))?;
    }
    let name = name.build();
    let mut root = X509::builder()?;
    root.set_version(2)?;
    let serial = BigNum::from_u32(number as u32 + 1)?.to_asn1_integer()?;
    root.set_serial_number(&serial)?;
    root.set_subject_name(&name)?;
    root.set_issuer_name(&name)?;
    let (begins, ends) = (Asn1Time::days_from_now(0)?, Asn1Time::days_from_now(3650)?);
    root.set_not_before(&begins)?;
    root.set_not_after(&ends)?;
    root.set_pubkey(key)?;
    root.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    root.sign(key, MessageDigest::sha256())?;
    Ok(String::from_utf8_lossy(&root.build().to_pem()?).into_owned())
}
