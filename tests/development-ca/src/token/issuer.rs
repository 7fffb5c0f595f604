//! The cluster's side: keys, JWKS and the claims that Kubernetes' TokenRequest gives.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, get_current_timestamp};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private};
use openssl::rsa::Rsa;
use openssl::{rand, sha};
use serde_json::{Value, json};

use crate::crypto;

/// Signature algorithm of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

/// What a token is to say; start from [`TokenRequest::new`] and change fields.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// `aud`.
    pub audiences: Vec<String>,
    /// `exp`, seconds from now; negative is expired already.
    pub lifetime: i64,
    /// `nbf` and `iat`, seconds from now.
    pub not_before: i64,
    /// Which of the issuer's keys signs.
    pub algorithm: Algorithm,
    /// `iss`.
    pub issuer: String,
}

impl TokenRequest {
    /// Audience `istio-ca`, one hour, ES256, the issuer of a default cluster.
    pub fn new(namespace: &str, service_account: &str) -> TokenRequest {
        TokenRequest {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            lifetime: 3600,
            not_before: 0,
            algorithm: Algorithm::Es256,
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        }
    }
}

/// Mints service-account tokens; holds one RSA-2048 and one P-256 key.
pub struct TokenIssuer {
    rsa: Key,
    ec: Key,
}

struct Key {
    key: PKey<Private>,
    id: String,
}

impl TokenIssuer {
    /// An issuer with fresh keys.
    pub fn new() -> TokenIssuer {
        TokenIssuer::generate().expect("OpenSSL makes an RSA and an EC key")
    }

    /// The public keys as a JWKS document.
    pub fn jwks(&self) -> String {
        self.try_jwks().expect("OpenSSL gives the numbers of its own keys").to_string()
    }

    /// A signed token.
    pub fn mint(&self, request: &TokenRequest) -> String {
        self.mint_claims(&self.claims(request), request.algorithm)
    }

    /// The claims that [`TokenIssuer::mint`] would sign: a start for tokens with something missing or wrong.
    pub fn claims(&self, request: &TokenRequest) -> Value {
        let at = |from_now: i64| get_current_timestamp().saturating_add_signed(from_now);
        let TokenRequest { namespace, service_account, .. } = request;
        json!({
            "iss": request.issuer,
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "aud": request.audiences,
            "exp": at(request.lifetime),
            "nbf": at(request.not_before),
            "iat": at(request.not_before),
            "jti": uuid(),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": { "name": format!("{service_account}-0"), "uid": uuid() },
                "serviceaccount": { "name": service_account, "uid": uuid() },
            },
        })
    }

    /// Signs any claims.
    pub fn mint_claims(&self, claims: &Value, algorithm: Algorithm) -> String {
        crypto::install();
        let (key, algorithm) = match algorithm {
            Algorithm::Rs256 => (&self.rsa, jsonwebtoken::Algorithm::RS256),
            Algorithm::Es256 => (&self.ec, jsonwebtoken::Algorithm::ES256),
        };
        let mut header = Header::new(algorithm);
        // Kubernetes' header is `alg` and `kid` alone.
        header.typ = None;
        header.kid = Some(key.id.clone());
        let der = key.key.private_key_to_pkcs8().expect("OpenSSL writes its own key as PKCS#8");
        let key = match algorithm {
            jsonwebtoken::Algorithm::RS256 => EncodingKey::from_rsa_der(&der),
            _ => EncodingKey::from_ec_der(&der),
        };
        jsonwebtoken::encode(&header, claims, &key).expect("OpenSSL signs a token")
    }

    fn generate() -> Result<TokenIssuer, ErrorStack> {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        Ok(TokenIssuer {
            rsa: Key::new(PKey::from_rsa(Rsa::generate(2048)?)?)?,
            ec: Key::new(PKey::from_ec_key(EcKey::generate(&curve)?)?)?,
        })
    }

    fn try_jwks(&self) -> Result<Value, ErrorStack> {
        let rsa = self.rsa.key.rsa()?;
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        let ec = self.ec.key.ec_key()?;
        ec.public_key().affine_coordinates(ec.group(), &mut x, &mut y, &mut *BigNumContext::new()?)?;
        Ok(json!({ "keys": [
            {
                "use": "sig", "kty": "RSA", "alg": "RS256", "kid": self.rsa.id,
                "n": base64url(&rsa.n().to_vec()), "e": base64url(&rsa.e().to_vec()),
            },
            {
                "use": "sig", "kty": "EC", "alg": "ES256", "kid": self.ec.id, "crv": "P-256",
                "x": base64url(&x.to_vec_padded(32)?), "y": base64url(&y.to_vec_padded(32)?),
            },
        ]}))
    }

    /// Keys as (file name, PEM), for [`crate::state`].
    pub(crate) fn to_files(&self) -> Result<[(&'static str, String); 2], ErrorStack> {
        let pem = |key: &PKeyRef<Private>| -> Result<String, ErrorStack> {
            Ok(String::from_utf8_lossy(&key.private_key_to_pem_pkcs8()?).into_owned())
        };
        Ok([(RSA_KEY, pem(&self.rsa.key)?), (EC_KEY, pem(&self.ec.key)?)])
    }

    /// The reverse of [`TokenIssuer::to_files`].
    pub(crate) fn from_files<E: From<ErrorStack>>(read: impl Fn(&str) -> Result<String, E>) -> Result<TokenIssuer, E> {
        let key = |name: &str| -> Result<Key, E> { Ok(Key::new(PKey::private_key_from_pem(read(name)?.as_bytes())?)?) };
        Ok(TokenIssuer { rsa: key(RSA_KEY)?, ec: key(EC_KEY)? })
    }
}

impl Default for TokenIssuer {
    fn default() -> Self {
        TokenIssuer::new()
    }
}

const RSA_KEY: &str = "token-rsa-key.pem";
const EC_KEY: &str = "token-ec-key.pem";

impl Key {
    /// Kubernetes names a key by the digest of its public half.
    fn new(key: PKey<Private>) -> Result<Key, ErrorStack> {
        let id = base64url(&sha::sha256(&key.public_key_to_der()?));
        Ok(Key { key, id })
    }
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A random UUID (version 4).
fn uuid() -> String {
    let mut bytes = [0; 16];
    rand::rand_bytes(&mut bytes).expect("OpenSSL has entropy");
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
