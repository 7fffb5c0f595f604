use super::{reader::Reader, variables};
use crate::identity::{KeyAlgorithm, KeyEncoding, KeySpec};

pub(super) fn read(reader: &mut Reader<'_>, compat: bool) -> KeySpec {
    let ecdsa = reader.choice_if_set(&variables::ECC_SIGNATURE_ALGORITHM, &[("ECDSA", ())]);
    let curve = reader.choice(&variables::ECC_CURVE, &[("P256", KeyAlgorithm::P256), ("P384", KeyAlgorithm::P384)]);
    let rsa = reader.parse_with(&variables::WORKLOAD_RSA_KEY_SIZE, |text| match text.parse::<u32>() {
        Ok(bits) if (2048..=4096).contains(&bits) && bits % 8 == 0 => Ok(KeyAlgorithm::Rsa { bits }),
        _ => Err("expected a number of bits from 2048 to 4096"),
    });
    let algorithm = match (ecdsa, rsa) {
        (None, Some(rsa)) => rsa,
        (None, None) if compat => KeyAlgorithm::Rsa { bits: 2048 },
        _ => curve,
    };
    let encoding = match reader.boolean(&variables::PKCS8_KEY) {
        Some(false) => KeyEncoding::Traditional,
        None if compat => KeyEncoding::Traditional,
        _ => KeyEncoding::Pkcs8,
    };
    KeySpec { algorithm, encoding }
}
