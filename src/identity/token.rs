use std::{fmt, io, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openssl::sha::sha256;
use serde_json::Value;

use super::CertificateFacts;
use crate::{
    bounded::{self, foreign_text},
    clock,
};

/// A Kubernetes token is below 2 KiB; anything much larger is not one.
const MAX_BYTES: usize = 16 * 1024;
/// Characters of one claim that are told.
const CLAIM: usize = 128;

/// Why a service-account token cannot be used. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read: check the projected volume, its path and its `fsGroup`.
    #[error("cannot read token file {path}: {cause}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the kernel said.
        cause: String,
    },
    /// The file has no content.
    #[error("the token is empty")]
    Empty,
    /// The token is larger than any real one.
    #[error("the token is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The text is not a JSON Web Token (RFC 7519).
    #[error("the token is not a JWT")]
    NotAJwt,
    /// The token's lifetime is over.
    #[error("the token expired {} s ago (exp {}, now {}): check that the kubelet refreshes it", now.saturating_sub(*expired), clock::rfc3339(*expired), clock::rfc3339(*now))]
    Expired {
        /// The `exp` claim.
        expired: i64,
        /// The local clock.
        now: i64,
    },
    /// The token is meant for somebody else.
    #[error("the token's audience is {found:?}, the CA wants {wanted:?}: check the projected volume's audience")]
    Audience {
        /// The `aud` claim.
        found: Vec<String>,
        /// What was looked for.
        wanted: String,
    },
    /// It has no `exp` claim.
    #[error("the token never expires (no exp): it is not served")]
    Endless,
    /// The `sub` claim is not that of a service account.
    #[error("the token's subject is not a service account")]
    Subject,
}

/// A service-account token. It cannot be printed, compared or cloned; only the CA client reads it.
pub struct BearerToken {
    jwt: String,
    claims: Claims,
}

/// What identifies one token without telling it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenDigest([u8; 32]);

/// The service account that a token names. Whether the name is right only the CA can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

struct Claims {
    begins: Option<i64>,
    expires: Option<i64>,
    audiences: Vec<String>,
    issuer: Option<String>,
    subject: Option<String>,
}

impl BearerToken {
    /// Reads the projected file.
    ///
    /// # Errors
    /// When it cannot be read or holds no JWT.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = read_bounded(path).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => TokenError::TooLarge,
            _ => TokenError::Unreadable { path: path.display().to_string(), cause: error.to_string() },
        })?;
        Self::parse(text)
    }

    /// Takes the text of a token. Its signature is not checked: that is the CA's part.
    ///
    /// # Errors
    /// When the text is not a JWT.
    pub fn parse(mut text: String) -> Result<Self, TokenError> {
        text.truncate(text.trim_end().len());
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(TokenError::TooLarge);
        }
        // What is not visible ASCII could not be sent as metadata either.
        let mut parts = text.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::NotAJwt);
        };
        let claims = Claims::parse(payload).filter(|_| text.bytes().all(|byte| byte.is_ascii_graphic()));
        claims.map(|claims| Self { jwt: text, claims }).ok_or(TokenError::NotAJwt)
    }

    /// Whether the CA can be expected to accept the token, so that a hopeless call is not made and the true reason
    /// is told: a CA answers every such failure with the same opaque `UNAUTHENTICATED`.
    ///
    /// # Errors
    /// When it has expired at `now` (Unix seconds) or is meant for another audience than this one, if it must be one.
    pub fn check(&self, audience: Option<&str>, now: i64) -> Result<(), TokenError> {
        if let Some(expired) = self.claims.expires.filter(|expires| *expires <= now) {
            return Err(TokenError::Expired { expired, now });
        }
        let Some(audience) = audience else { return Ok(()) };
        if self.claims.audiences.iter().any(|found| found == audience) {
            return Ok(());
        }
        Err(TokenError::Audience { found: self.claims.audiences.clone(), wanted: audience.to_owned() })
    }

    /// The `iat` claim in Unix seconds, or else `nbf`.
    pub fn begins(&self) -> Option<i64> {
        self.claims.begins
    }

    /// The `exp` claim in Unix seconds, if there is one.
    pub fn expires(&self) -> Option<i64> {
        self.claims.expires
    }

    /// What it says of itself, without a byte of it: what a CA that does not accept it does not tell.
    pub fn describe(&self, now: i64) -> String {
        let end = match self.claims.expires {
            Some(end) if end > now => format!("expires at {} (in {} s)", clock::rfc3339(end), end.saturating_sub(now)),
            Some(end) => format!("ended at {}", clock::rfc3339(end)),
            None => "has no end".to_owned(),
        };
        let named = |claim: &Option<String>| foreign_text(claim.as_deref().unwrap_or("nobody"), CLAIM);
        let (issuer, subject) = (named(&self.claims.issuer), named(&self.claims.subject));
        let audiences: Vec<_> = self.claims.audiences.iter().take(4).map(|one| foreign_text(one, CLAIM)).collect();
        format!("the token is for the audience {audiences:?}, of {subject}, from {issuer}, and {end}")
    }

    /// What everybody may know of it, in place of a certificate's: its audiences as the subject, its issuer, its life.
    pub fn facts(&self) -> CertificateFacts {
        let named = |claim: &str| foreign_text(claim, CLAIM);
        CertificateFacts {
            serial: String::new(),
            subject: named(&self.claims.audiences.join(", ")),
            issuer: named(self.claims.issuer.as_deref().unwrap_or_default()),
            not_before: self.claims.begins.unwrap_or_default(),
            not_after: self.claims.expires.unwrap_or(i64::MAX),
            fingerprint: self.digest().0,
            is_crl: false,
        }
    }

    /// All of it, for those that it is for.
    pub fn text(&self) -> &str {
        &self.jwt
    }

    /// The service account that the `sub` claim names.
    ///
    /// # Errors
    /// When it names something else.
    pub fn service_account(&self) -> Result<ServiceAccount, TokenError> {
        let subject = self.claims.subject.as_deref().and_then(|subject| subject.strip_prefix("system:serviceaccount:"));
        match subject.and_then(|account| account.split_once(':')) {
            Some((namespace, name)) => Ok(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }),
            None => Err(TokenError::Subject),
        }
    }

    /// The value of the `authorization` metadata of a call to the CA.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.jwt)
    }

    /// SHA-256 of the token, to recognise it again.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest(sha256(self.jwt.as_bytes()))
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken({} bytes)", self.jwt.len())
    }
}

impl Claims {
    fn parse(payload: &str) -> Option<Self> {
        let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        let claims: Value = serde_json::from_slice(&json).ok()?;
        let claims = claims.as_object()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        // A NumericDate may have a fraction (RFC 7519, section 2).
        let time = |name| claims.get(name).and_then(Value::as_f64).map(|seconds| seconds as i64);
        Some(Self {
            begins: time("iat").or_else(|| time("nbf")),
            expires: time("exp"),
            audiences: match claims.get("aud") {
                Some(Value::Array(several)) => several.iter().filter_map(text).collect(),
                Some(one) => text(one).into_iter().collect(),
                None => Vec::new(),
            },
            issuer: claims.get("iss").and_then(text),
            subject: claims.get("sub").and_then(text),
        })
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    bounded::read_ascii(path, MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(claims))
    }

    fn token(claims: &str) -> BearerToken {
        BearerToken::parse(jwt(claims)).unwrap()
    }

    #[test]
    fn expiry_and_audience_are_checked() {
        let good = token(r#"{"aud":["istio-ca","other"],"exp":1000.5}"#);
        assert_eq!(good.check(Some("istio-ca"), 999), Ok(()));
        assert_eq!(good.check(Some("istio-ca"), 1000), Err(TokenError::Expired { expired: 1000, now: 1000 }));
        let times = [r#"{"iat":1.5,"nbf":2}"#, r#"{"nbf":2}"#, "{}"].map(|claims| token(claims).begins());
        assert_eq!(times, [Some(1), Some(2), None]);
        let error = good.check(Some("vault"), 999).unwrap_err();
        assert_eq!(error.to_string().matches("vault").count(), 1);
        assert!(error.to_string().contains("istio-ca"));
        assert_eq!(token(r#"{"aud":"istio-ca"}"#).check(Some("istio-ca"), 5), Ok(()), "one audience, no expiry");
        assert!(token("{}").check(Some("istio-ca"), 5).is_err());
    }

    #[test]
    fn a_token_that_is_not_a_jwt_is_reported() {
        for (text, error) in [
            (String::new(), TokenError::Empty),
            (" \n".to_owned(), TokenError::Empty),
            ("abc".to_owned(), TokenError::NotAJwt),
            ("a.b.c".to_owned(), TokenError::NotAJwt),
            (jwt("{}") + ".x", TokenError::NotAJwt),
            (jwt("[]"), TokenError::NotAJwt),
            (jwt("{}") + "\nInjected: header", TokenError::NotAJwt),
            ("x".repeat(MAX_BYTES + 1), TokenError::TooLarge),
        ] {
            assert_eq!(BearerToken::parse(text).unwrap_err(), error);
        }
        assert!(BearerToken::parse(jwt("{}") + "\n").is_ok(), "a newline at the end of the file");
    }

    #[test]
    fn the_subject_names_the_service_account() {
        let account = token(r#"{"sub":"system:serviceaccount:foo:sleep"}"#).service_account().unwrap();
        assert_eq!((account.namespace.as_str(), account.name.as_str()), ("foo", "sleep"));
        for claims in ["{}", r#"{"sub":"joe"}"#, r#"{"sub":"system:serviceaccount:foo"}"#, r#"{"sub":7}"#] {
            assert_eq!(token(claims).service_account(), Err(TokenError::Subject), "{claims}");
        }
    }

    #[test]
    fn a_token_cannot_be_printed() {
        let token = token("{}");
        assert_eq!(format!("{token:?}"), format!("BearerToken({} bytes)", jwt("{}").len()));
    }
}
