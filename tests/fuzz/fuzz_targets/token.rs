//! Service-account tokens. An input that begins with a brace is the claims of a token, any other a token's text.
#![no_main]

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use sds_shim::identity::{BearerToken, SpiffeId, TokenError, TrustDomain};
use serde_json::Value;

const SIGNATURE: &str = "c2lnbmF0dXJlLXRoYXQtbm9ib2R5LXNob3VsZC1zZWU";
const AUDIENCE: &str = "istio-ca";
const TIMES: [i64; 5] = [i64::MIN, 0, 1_800_000_000, 1 << 53, i64::MAX];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.starts_with('{') {
        claims(text);
    } else {
        raw(text);
    }
});

fn raw(text: &str) {
    let parsed = BearerToken::parse(text.to_owned());
    let sent = text.trim_end();
    match parsed {
        Ok(token) => {
            assert_eq!(token.authorization(), format!("Bearer {sent}"));
            assert!(http::HeaderValue::from_str(&token.authorization()).is_ok(), "it cannot be sent");
            assert_eq!(format!("{token:?}"), format!("BearerToken({} bytes)", sent.len()));
            assert_eq!(sent.matches('.').count(), 2);
            assert!(sent.len() <= 16 * 1024);
            let again = BearerToken::parse(sent.to_owned()).expect("what follows it does not count");
            assert!(again.digest() == token.digest());
        }
        Err(TokenError::Empty) => assert!(sent.is_empty()),
        Err(TokenError::TooLarge) => assert!(sent.len() > 16 * 1024),
        Err(TokenError::NotAJwt) => {}
        Err(other) => panic!("reading a text cannot end with {other:?}"),
    }
}

fn claims(json: &str) {
    let text = format!("e30.{}.{SIGNATURE}", URL_SAFE_NO_PAD.encode(json));
    let claims: Option<Value> = serde_json::from_str(json).ok();
    let (token, claims) = match (BearerToken::parse(text.clone()), claims) {
        (Ok(token), Some(claims)) => (token, claims),
        (Err(TokenError::NotAJwt), None) => return,
        (Err(TokenError::TooLarge), _) => return assert!(text.len() > 16 * 1024),
        (parsed, claims) => panic!("{parsed:?} of {claims:?}"),
    };
    let audiences = match &claims["aud"] {
        Value::Array(several) => several.clone(),
        one => vec![one.clone()],
    };
    let meant_for_us = audiences.contains(&Value::from(AUDIENCE));
    for now in TIMES {
        let checked = token.check(Some(AUDIENCE), now);
        if let Err(error) = &checked {
            let told = error.to_string();
            assert!(!told.contains(char::is_control), "it is not one line: {told:?}");
            assert!(!told.contains(SIGNATURE), "the signature is told");
        }
        match (&checked, claims["exp"].as_f64()) {
            (Err(TokenError::Expired { expired, .. }), Some(exp)) => {
                assert!(*expired <= now);
                assert_eq!(*expired, exp as i64);
            }
            (Err(TokenError::Expired { .. }), None) => panic!("there is no time to expire"),
            (checked, exp) => {
                assert!(exp.is_none_or(|exp| exp as i64 > now), "it has expired");
                assert_eq!(checked.is_ok(), meant_for_us);
            }
        }
    }
    match token.service_account() {
        Ok(account) => {
            let (namespace, name) = (&account.namespace, &account.name);
            assert_eq!(claims["sub"], format!("system:serviceaccount:{namespace}:{name}").as_str());
            // What becomes of it: an identity, or nothing.
            if let Ok(id) = SpiffeId::for_service_account(&TrustDomain::default(), namespace, name) {
                assert_eq!(id.as_str(), format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"));
                assert_eq!(id.as_str().matches('/').count(), 6, "a name changed the path: {id}");
            }
        }
        Err(error) => assert_eq!(error, TokenError::Subject),
    }
}
