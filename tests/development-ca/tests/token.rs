//! Which tokens authenticate.

mod common;

use common::{SLEEP, Scene, csr};
use development_ca::{Algorithm, Outcome, TokenIssuer, TokenRequest};
use serde_json::{Value, json};
use tonic::Code;

/// Calls with the token, checks the opaque refusal, and gives the recorded reason.
async fn refusal(scene: &Scene, token: &str) -> String {
    let status = scene.call(&csr(SLEEP), token).await.expect_err("a bad token is refused");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "request authenticate failure"));
    match scene.ca.calls().pop().map(|call| call.outcome) {
        Some(Outcome::Refused { code: Code::Unauthenticated, reason }) => reason,
        other => panic!("recorded as {other:?}"),
    }
}

fn request() -> TokenRequest {
    TokenRequest::new("foo", "sleep")
}

#[tokio::test]
async fn rs256_and_es256_tokens_are_good() {
    let scene = Scene::new().await;
    for algorithm in [Algorithm::Rs256, Algorithm::Es256] {
        let token = scene.tokens.mint(&TokenRequest { algorithm, ..request() });
        let chain = scene.call(&csr(SLEEP), &token).await.unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        assert_eq!(chain.len(), 3);
    }
    let subject = scene.ca.calls()[0].authorization.clone().and_then(|authorization| authorization.subject);
    assert_eq!(subject.as_deref(), Some("system:serviceaccount:foo:sleep"));
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let scene = Scene::new().await;
    for algorithm in [Algorithm::Rs256, Algorithm::Es256] {
        let token = scene.tokens.mint(&TokenRequest { algorithm, ..request() });
        let other = scene.tokens.mint(&TokenRequest { algorithm, namespace: "bar".to_owned(), ..request() });
        let [header, claims, signature] = parts(&token);
        let [_, other_claims, other_signature] = parts(&other);
        for forged in [
            format!("{header}.{other_claims}.{signature}"),
            format!("{header}.{claims}.{other_signature}"),
            format!("{header}.{claims}."),
        ] {
            assert_eq!(refusal(&scene, &forged).await, "bad signature", "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn the_key_decides_the_algorithm() {
    let scene = Scene::new().await;
    let es256 = scene.tokens.mint(&request());
    let rs256 = scene.tokens.mint(&TokenRequest { algorithm: Algorithm::Rs256, ..request() });
    let header = |token: &str| -> Value { serde_json::from_slice(&decode(parts(token)[0])).expect("a header is JSON") };
    let (mut es_header, rs_header) = (header(&es256), header(&rs256));
    es_header["kid"] = rs_header["kid"].clone();
    for alg in ["ES256", "none", "HS256"] {
        es_header["alg"] = json!(alg);
        let [_, claims, signature] = parts(&es256);
        let forged = format!("{}.{claims}.{signature}", encode(&es_header));
        let reason = refusal(&scene, &forged).await;
        assert!(reason.starts_with("unacceptable token"), "{alg}: {reason}");
    }
}

#[tokio::test]
async fn an_unknown_key_is_refused() {
    let scene = Scene::new().await;
    assert!(refusal(&scene, &TokenIssuer::new().mint(&request())).await.starts_with("unknown key"));
    let token = scene.token();
    let [header, claims, signature] = parts(&token);
    let mut header: Value = serde_json::from_slice(&decode(header)).expect("a header is JSON");
    header.as_object_mut().expect("a header is an object").remove("kid");
    let forged = format!("{}.{claims}.{signature}", encode(&header));
    assert_eq!(refusal(&scene, &forged).await, "the token names no key (kid)");
}

#[tokio::test]
async fn times_audience_and_issuer_are_checked() {
    let scene = Scene::new().await;
    let cases = [
        (TokenRequest { lifetime: -2, ..request() }, "the token has expired"),
        (TokenRequest { not_before: 600, ..request() }, "the token is not valid yet (nbf)"),
        (TokenRequest { audiences: vec!["api".to_owned()], ..request() }, "wrong audience"),
        (TokenRequest { audiences: Vec::new(), ..request() }, "wrong audience"),
        (TokenRequest { issuer: "https://elsewhere".to_owned(), ..request() }, "wrong issuer"),
    ];
    for (request, reason) in cases {
        assert_eq!(refusal(&scene, &scene.tokens.mint(&request)).await, reason, "{request:?}");
    }
    let both = TokenRequest { audiences: vec!["api".to_owned(), "istio-ca".to_owned()], ..request() };
    assert!(scene.call(&csr(SLEEP), &scene.tokens.mint(&both)).await.is_ok());
}

#[tokio::test]
async fn every_claim_must_be_there_and_fit() {
    let scene = Scene::new().await;
    let good = scene.tokens.claims(&request());
    for pointer in ["/exp", "/iss", "/aud", "/sub", "/kubernetes.io", "/kubernetes.io/namespace"] {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let mut claims = good.clone();
        claims.pointer_mut(parent).and_then(Value::as_object_mut).expect("the parent is there").remove(name);
        let reason = refusal(&scene, &scene.tokens.mint_claims(&claims, Algorithm::Es256)).await;
        assert!(reason.starts_with("unacceptable token"), "{pointer}: {reason}");
    }
    for (pointer, value, expected) in [
        ("/sub", json!("system:serviceaccount:foo:httpbin"), "sub "),
        ("/kubernetes.io/namespace", json!("bar"), "sub "),
        ("/kubernetes.io/serviceaccount/name", json!("httpbin"), "sub "),
        ("/exp", json!("tomorrow"), "unacceptable token"),
        ("/nbf", json!("yesterday"), "unacceptable token"),
        ("/kubernetes.io/serviceaccount", json!("sleep"), "unacceptable token"),
    ] {
        let mut claims = good.clone();
        *claims.pointer_mut(pointer).expect("the claim is there") = value;
        let reason = refusal(&scene, &scene.tokens.mint_claims(&claims, Algorithm::Rs256)).await;
        assert!(reason.starts_with(expected), "{pointer}: {reason}");
    }
}

#[tokio::test]
async fn a_namespace_cannot_smuggle_a_path() {
    let scene = Scene::new().await;
    let token = scene.tokens.mint(&TokenRequest::new("foo/sa/sleep", "x"));
    assert_eq!(refusal(&scene, &token).await, "malformed namespace or name");
}

#[tokio::test]
async fn the_header_must_hold_one_bearer_token() {
    let scene = Scene::new().await;
    let none = scene.client().await.call(&csr(SLEEP), None).await.expect_err("no token is refused");
    assert_eq!((none.code(), none.message()), (Code::Unauthenticated, "request authenticate failure"));
    for garbage in ["", "x", "a.b.c", "a.b.c.d"] {
        refusal(&scene, garbage).await;
    }
    let mut basic = common::request(&csr(SLEEP), None);
    basic.metadata_mut().insert("authorization", "Basic c2xlZXA6eA==".parse().expect("a header value"));
    let status = scene.client().await.request(basic).await.expect_err("another scheme is refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut twice = common::request(&csr(SLEEP), Some(&scene.token()));
    twice.metadata_mut().append("authorization", "Bearer x".parse().expect("a header value"));
    let status = scene.client().await.request(twice).await.expect_err("two headers are refused");
    assert_eq!(status.code(), Code::Unauthenticated);
}

fn parts(token: &str) -> [&str; 3] {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().unwrap_or_else(|_| panic!("not a JWT: {token}"))
}

fn decode(part: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("a JWT is base64url")
}

fn encode(value: &Value) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}
