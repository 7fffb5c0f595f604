use super::{reader::Reader, variables};
use crate::identity::{KeyAlgorithm, KeyEncoding, KeySpec};

pub(super) fn read(reader: &mut Reader<'_>, compat: bool) -> KeySpec {
    let ecdsa = reader.choice_if_set(&variables::ECC_SIGNATURE_ALGORITHM, [()]);
    let curve = reader.choice(&variables::ECC_CURVE, [KeyAlgorithm::P256, KeyAlgorithm::P384]);
    let rsa = reader.number(&variables::WORKLOAD_RSA_KEY_SIZE).map(|bits| KeyAlgorithm::Rsa { bits });
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
