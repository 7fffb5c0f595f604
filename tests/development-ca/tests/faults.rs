//! Each scripted fault, once from the queue and where it matters for good.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Connect, SLEEP, Scene, csr, csr_by, p256, x509};
use development_ca::{Fault, Leaf, Outcome, Pki, PlainAnswer};
use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use openssl::ssl::SslVersion;
use tonic::{Code, Status, metadata::MetadataMap};

#[tokio::test]
async fn a_status_is_answered_as_scripted() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    for code in [Code::Unavailable, Code::Internal, Code::ResourceExhausted, Code::Unauthenticated] {
        scene.ca.push_fault(Fault::Status(code, "scripted".to_owned()));
        let status = client.call(&csr(SLEEP), None).await.expect_err("a status is scripted");
        assert_eq!((status.code(), status.message()), (code, "scripted"));
    }
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_ok(), "the queue is used up");
}

#[tokio::test]
async fn a_lasting_fault_ends_when_it_is_taken_back() {
    let scene = Scene::new().await;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, String::new())));
    scene.ca.push_fault(Fault::Status(Code::Aborted, String::new()));
    for code in [Code::Aborted, Code::Unavailable, Code::Unavailable] {
        assert_eq!(scene.call_right().await.map_err(|status| status.code()), Err(code));
    }
    scene.ca.set_fault(None);
    assert!(scene.call_right().await.is_ok());
}

#[tokio::test]
async fn a_status_keeps_its_details_and_metadata() {
    let scene = Scene::new().await;
    let metadata = MetadataMap::from_headers(HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("7"))]));
    let scripted = Status::with_details_and_metadata(Code::Aborted, "x", vec![8, 10].into(), metadata);
    scene.ca.push_fault(Fault::Refuse(Box::new(scripted)));
    let status = scene.call_right().await.expect_err("a status is scripted");
    assert_eq!((status.code(), status.details()), (Code::Aborted, &[8, 10][..]));
    assert_eq!(status.metadata().get("retry-after").map(|value| value.as_bytes()), Some(&b"7"[..]));
}

#[tokio::test]
async fn a_plain_http_answer_is_not_grpc() {
    let scene = Scene::new().await;
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    scene.ca.push_fault(Fault::Http(PlainAnswer { status: 503, headers, body: String::new() }));
    let status = scene.call_right().await.expect_err("no gRPC");
    assert_eq!(status.code(), Code::Unavailable, "as gRPC maps the HTTP status: {status:?}");
    assert_eq!(scene.call_right().await.map(|chain| chain.len()).ok(), Some(3), "the next one is right");
}

#[tokio::test]
async fn a_delayed_answer_is_right() {
    let scene = Scene::new().await;
    let delay = Duration::from_millis(150);
    scene.ca.push_fault(Fault::Delay(delay));
    let start = Instant::now();
    assert_eq!(scene.call_right().await.map(|chain| chain.len()).ok(), Some(3));
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn a_hanging_call_ends_with_its_caller() {
    let scene = Scene::new().await;
    scene.ca.push_fault(Fault::Hang);
    let (mut client, token) = (scene.client().await, scene.token());
    let call = tokio::spawn(async move { client.call(&csr(SLEEP), Some(&token)).await });
    scene.ca.wait_for_calls(1).await;
    assert_eq!(scene.ca.calls()[0].outcome, Outcome::Pending);
    call.abort();
    scene.ca.wait_for_outcomes(1).await;
    assert_eq!(scene.ca.calls()[0].outcome, Outcome::Abandoned);
}

#[tokio::test]
async fn a_chain_is_answered_verbatim() {
    let scene = Scene::new().await;
    for chain in [vec![], vec!["one".to_owned()], vec!["not".to_owned(), "PEM".to_owned()]] {
        scene.ca.push_fault(Fault::Chain(chain.clone()));
        assert_eq!(scene.call(&csr(SLEEP), "no token").await.expect("it is answered"), chain);
    }
    assert_eq!(scene.ca.calls()[0].outcome, Outcome::Scripted);
}

#[tokio::test]
async fn a_right_answer_can_be_edited() {
    let scene = Scene::new().await;
    scene.ca.push_fault(Fault::mutate(|mut chain| {
        chain.swap(0, 1);
        chain
    }));
    let chain = scene.call_right().await.expect("it is answered");
    assert_eq!((chain.len(), &chain[0]), (3, &scene.pki.intermediate_pem()));
    scene.ca.push_fault(Fault::mutate(|chain| chain));
    let refused = scene.call(&csr(SLEEP), "no token").await.expect_err("an edited answer is still earned");
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn certificates_can_be_wrong_in_every_way() {
    let scene = Scene::new().await;
    let foreign = Arc::new(Pki::new("foreign"));
    let key = p256();
    let csr = csr_by(&key, &common::CsrContent { uris: &[SLEEP], ..Default::default() });
    let sign = async |fault: Fault| {
        scene.ca.push_fault(fault);
        let chain = scene.call(&csr, &scene.token()).await.expect("it is signed");
        assert_eq!(chain.len(), 3);
        x509(&chain[0])
    };
    let own = x509(&scene.pki.intermediate_pem()).public_key().expect("a key");
    let text = |certificate: &openssl::x509::X509| -> String {
        String::from_utf8(certificate.to_text().expect("text")).expect("it is text")
    };

    let leaf = sign(Fault::sign(|o| o.other_key = true)).await;
    assert!(!leaf.public_key().expect("a key").public_eq(&key) && leaf.verify(&own).expect("it runs"));
    let leaf = sign(Fault::sign(move |o| o.signed_by = Some(foreign.clone()))).await;
    assert!(leaf.public_key().expect("a key").public_eq(&key) && !leaf.verify(&own).expect("it runs"));
    drop(openssl::error::ErrorStack::get());
    let leaf = sign(Fault::sign(|o| o.leaf.uri = vec!["spiffe://cluster.local/ns/bar/sa/x".to_owned()])).await;
    assert!(text(&leaf).contains("URI:spiffe://cluster.local/ns/bar/sa/x\n"));
    let leaf = sign(Fault::sign(|o| o.leaf.uri.push("spiffe://cluster.local/ns/bar/sa/x".to_owned()))).await;
    assert_eq!(leaf.subject_alt_names().map(|names| names.len()), Some(2));
    let leaf = sign(Fault::sign(|o| o.leaf.uri.clear())).await;
    assert!(leaf.subject_alt_names().is_none());
    let leaf = sign(Fault::sign(|o| (o.leaf.not_before, o.leaf.not_after) = (-600, -300))).await;
    assert!(*leaf.not_after() < *openssl::asn1::Asn1Time::days_from_now(0).expect("now"));
    let leaf = sign(Fault::sign(|o| o.leaf.not_before = 300)).await;
    assert!(*leaf.not_before() > *openssl::asn1::Asn1Time::days_from_now(0).expect("now"));
    let leaf = sign(Fault::sign(|o| o.leaf.ca = true)).await;
    assert!(text(&leaf).contains("CA:TRUE"));
    let leaf = sign(Fault::sign(|o| (o.leaf.client_auth, o.leaf.server_auth) = (false, false))).await;
    assert!(!text(&leaf).contains("Extended Key Usage"));
}

#[tokio::test]
async fn a_client_certificate_can_be_refused() {
    let scene = Scene::new().await;
    for max_version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        scene.ca.push_fault(Fault::RefuseClientCertificate);
        assert!(scene.call_right().await.is_ok(), "without a certificate nothing is refused");
        let certificate = scene.pki.issue(&Leaf::workload(SLEEP, Duration::from_secs(60)));
        let connect = Connect { certificate: Some(certificate), max_version, ..Connect::default() };
        let refused = match scene.try_client(&connect).await {
            Ok(mut client) => client.call(&csr(SLEEP), None).await.map_err(|status| format!("{status:?}")),
            Err(error) => Err(error.to_string()),
        };
        let text = refused.expect_err("the certificate is refused");
        assert!(text.contains("alert"), "{max_version:?}: {text}");
        let mut client = scene.try_client(&connect).await.expect("the queue is used up");
        assert!(client.call(&csr(SLEEP), None).await.is_ok());
    }
}

#[tokio::test]
async fn a_connection_can_be_dropped() {
    let scene = Scene::new().await;
    scene.ca.push_fault(Fault::DropConnection);
    assert!(scene.try_client(&Connect::default()).await.is_err(), "a new connection is closed at once");
    let mut client = scene.client().await;
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_ok());
    scene.ca.push_fault(Fault::DropConnection);
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_err(), "an open one with the call");
    assert!(scene.call_right().await.is_ok());
    assert_eq!(scene.ca.connections(), 3);
    assert_eq!(scene.ca.calls()[1].outcome, Outcome::Abandoned);
}
