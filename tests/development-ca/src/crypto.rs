//! RS256 and ES256 for `jsonwebtoken`, computed by OpenSSL: the one cryptographic library of this workspace.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private, Public};
use openssl::rsa::Rsa;
use openssl::{sha, sign};

/// Makes OpenSSL the process's provider; harmless when called again.
pub(crate) fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| {
            let key = PKey::private_key_from_pkcs8(private(key)).map_err(provider_error)?;
            Ok(Box::new(OpenSsl { algorithm: supported(*algorithm)?, key }))
        },
        verifier_factory: |algorithm, key| {
            let key = match supported(*algorithm)? {
                Algorithm::RS256 => rsa_public(key)?,
                _ => p256_public(key)?,
            };
            Ok(Box::new(OpenSsl { algorithm: *algorithm, key }))
        },
        // Only JWKS made from private keys and thumbprints need these; neither is used here.
        key_utils: KeyUtils::new_unimplemented(),
    };
    // The error is the value that was refused: a provider installed before stays, and there is only this one.
    let _already_installed = PROVIDER.install_default();
}

struct OpenSsl<T> {
    algorithm: Algorithm,
    key: PKey<T>,
}

impl Signer<Vec<u8>> for OpenSsl<Private> {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        let sign = || match self.algorithm {
            Algorithm::RS256 => {
                let mut signer = sign::Signer::new(MessageDigest::sha256(), &self.key)?;
                signer.sign_oneshot_to_vec(message)
            }
            // JWS wants the two numbers side by side at full width (RFC 7518 section 3.4), OpenSSL gives DER.
            _ => {
                let signature = EcdsaSig::sign(&sha::sha256(message), &*self.key.ec_key()?)?;
                Ok([signature.r().to_vec_padded(32)?, signature.s().to_vec_padded(32)?].concat())
            }
        };
        sign().map_err(Error::from_source)
    }
}

impl Verifier<Vec<u8>> for OpenSsl<Public> {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verify = || match self.algorithm {
            Algorithm::RS256 => {
                let mut verifier = sign::Verifier::new(MessageDigest::sha256(), &self.key)?;
                verifier.verify_oneshot(signature, message)
            }
            _ if signature.len() != 64 => Ok(false),
            _ => {
                let (r, s) = signature.split_at(32);
                let signature = EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?;
                signature.verify(&sha::sha256(message), &*self.key.ec_key()?)
            }
        };
        if verify().map_err(|error: ErrorStack| Error::from_source(error))? { Ok(()) } else { Err(Error::new()) }
    }
}

impl JwtSigner for OpenSsl<Private> {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl JwtVerifier for OpenSsl<Public> {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn supported(algorithm: Algorithm) -> Result<Algorithm> {
    match algorithm {
        Algorithm::RS256 | Algorithm::ES256 => Ok(algorithm),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

fn private(key: &EncodingKey) -> &[u8] {
    key.as_bytes()
}

fn rsa_public(key: &DecodingKey) -> Result<PKey<Public>> {
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
        return Err(ErrorKind::InvalidKeyFormat.into());
    };
    let load = || PKey::from_rsa(Rsa::from_public_components(BigNum::from_slice(n)?, BigNum::from_slice(e)?)?);
    load().map_err(provider_error)
}

fn p256_public(key: &DecodingKey) -> Result<PKey<Public>> {
    let point = key.try_get_as_bytes()?;
    let load = || {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let point = EcPoint::from_bytes(&group, point, &mut *BigNumContext::new()?)?;
        PKey::from_ec_key(EcKey::from_public_key(&group, &point)?)
    };
    load().map_err(provider_error)
}

fn provider_error(error: ErrorStack) -> jsonwebtoken::errors::Error {
    ErrorKind::Provider(error.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIMS: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    fn check(algorithm: Algorithm, header: &str, signature: &str, key: &DecodingKey) {
        install();
        let verify = |message: &str, signature: &str| {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm).expect("base64url")
        };
        let message = format!("{header}.{CLAIMS}");
        assert!(verify(&message, signature));
        assert!(!verify(&format!("{message}x"), signature));
        assert!(!verify(&message, &format!("x{}", &signature[1..])));
        // Four characters are three bytes: still base64url, but too short.
        assert!(!verify(&message, &signature[4..]));
    }

    /// RFC 7515 appendix A.3: signer and verifier here could share a mistake, this signature is foreign.
    #[test]
    fn es256_agrees_with_the_rfc() {
        let key = DecodingKey::from_ec_components(
            "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        );
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        check(Algorithm::ES256, "eyJhbGciOiJFUzI1NiJ9", signature, &key.expect("a key"));
    }

    /// RFC 7515 appendix A.2.
    #[test]
    fn rs256_agrees_with_the_rfc() {
        let modulus = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql\
                       L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs\
                       LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud\
                       F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5juj\
                         Gbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe\
                         7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8\
                         np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let key = DecodingKey::from_rsa_components(modulus, "AQAB").expect("a key");
        check(Algorithm::RS256, "eyJhbGciOiJSUzI1NiJ9", signature, &key);
    }
}
