//! The CA's side: signature, registered claims, Kubernetes' claims.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::crypto;
use crate::identity::Identity;

/// Verifies tokens against one JWKS, issuer and audience.
pub(super) struct TokenVerifier {
    keys: JwkSet,
    issuer: String,
    audience: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl TokenVerifier {
    pub(super) fn new(jwks: &str, issuer: &str, audience: &str) -> serde_json::Result<TokenVerifier> {
        crypto::install();
        Ok(TokenVerifier {
            keys: serde_json::from_str(jwks)?,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        })
    }

    /// Whether the token names a key of this set, and its issuer.
    pub(super) fn knows_signer_of(&self, token: &str) -> bool {
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid);
        kid.is_some_and(|kid| self.keys.find(&kid).is_some())
            && Unverified::read(token).iss.is_some_and(|issuer| issuer == self.issuer)
    }

    /// The identity in this trust domain that the token proves, or the reason why it proves none: for the record, not
    /// for the caller.
    pub(super) fn verify(&self, token: &str, trust_domain: &str) -> Result<Identity, String> {
        let header = jsonwebtoken::decode_header(token).map_err(describe)?;
        let kid = header.kid.ok_or("the token names no key (kid)")?;
        let key = self.keys.find(&kid).ok_or_else(|| format!("unknown key {kid:?}"))?;
        let mut validation = Validation::new(algorithm(key)?);
        // No leeway: minting and verifying share this machine's clock, and tests count on the second.
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        let key = DecodingKey::from_jwk(key).map_err(describe)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(describe)?.claims;
        identity(&claims, trust_domain)
    }
}

fn identity(claims: &Claims, trust_domain: &str) -> Result<Identity, String> {
    let Kubernetes { namespace, serviceaccount: Named { name } } = &claims.kubernetes;
    if claims.sub != format!("system:serviceaccount:{namespace}:{name}") {
        return Err(format!("sub {:?} and the kubernetes.io claims differ", claims.sub));
    }
    Identity::new(trust_domain, namespace, name).ok_or_else(|| "malformed namespace or name".to_owned())
}

/// What a token says of itself, believed by nobody: to tell calls apart in the record.
#[derive(Default, Deserialize)]
pub(crate) struct Unverified {
    pub(crate) iss: Option<String>,
    pub(crate) sub: Option<String>,
    pub(crate) jti: Option<String>,
}

impl Unverified {
    pub(crate) fn read(token: &str) -> Unverified {
        jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap_or_default()
    }
}

/// The key decides the algorithm, never the token.
fn algorithm(key: &Jwk) -> Result<Algorithm, String> {
    match key.common.key_algorithm {
        Some(KeyAlgorithm::RS256) => Ok(Algorithm::RS256),
        Some(KeyAlgorithm::ES256) => Ok(Algorithm::ES256),
        other => Err(format!("the key is for {other:?}")),
    }
}

fn describe(error: jsonwebtoken::errors::Error) -> String {
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired".to_owned(),
        ErrorKind::ImmatureSignature => "the token is not valid yet (nbf)".to_owned(),
        ErrorKind::InvalidIssuer => "wrong issuer".to_owned(),
        ErrorKind::InvalidAudience => "wrong audience".to_owned(),
        ErrorKind::InvalidSignature => "bad signature".to_owned(),
        _ => format!("unacceptable token: {error}"),
    }
}
