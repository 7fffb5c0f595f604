//! What a CSR may ask for, and what comes back.

mod common;

use std::time::Duration;

use common::{CsrContent, SLEEP, Scene, build_csr, csr, csr_by, p256, request, x509};
use development_ca::{CaOptions, Leaf, Outcome, Pki};
use openssl::asn1::Asn1Time;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509PurposeId, X509StoreContext};
use sds_shim_proto::google::protobuf::{Struct, Value, value::Kind};
use tonic::Code;

#[tokio::test]
async fn the_chain_verifies_from_leaf_to_root() {
    let scene = Scene::new().await;
    let key = p256();
    let content = CsrContent { uris: &[SLEEP], ..CsrContent::default() };
    let chain = scene.call(&csr_by(&key, &content), &scene.token()).await.expect("a right call succeeds");
    assert_eq!(chain.len(), 3);
    assert_eq!((&chain[1], &chain[2]), (&scene.pki.intermediate_pem(), &scene.pki.root_pem()));
    let [leaf, intermediate, root] = [0, 1, 2].map(|index| x509(&chain[index]));
    assert!(leaf.public_key().expect("a key").public_eq(&key));
    for purpose in [X509PurposeId::SSL_CLIENT, X509PurposeId::SSL_SERVER] {
        assert!(verifies(&leaf, &intermediate, root.clone(), purpose));
    }
    assert!(!verifies(&leaf, &intermediate, x509(&Pki::new("other").root_pem()), X509PurposeId::SSL_CLIENT));
}

#[tokio::test]
async fn the_leaf_says_what_it_should() {
    let scene = Scene::new().await;
    let chain = scene.call_right().await.expect("a right call succeeds");
    let leaf = x509(&chain[0]);
    let text = String::from_utf8(leaf.to_text().expect("OpenSSL prints it")).expect("it is text");
    for expected in [
        "X509v3 Subject Alternative Name: critical",
        "URI:spiffe://cluster.local/ns/foo/sa/sleep\n",
        "CA:FALSE",
        "Digital Signature, Key Encipherment",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    assert_eq!(leaf.subject_name().entries().count(), 0);
    assert_eq!(leaf.subject_alt_names().map(|names| names.len()), Some(1));
    let Outcome::Issued { serial, spiffe_id } = scene.ca.calls()[0].outcome.clone() else { panic!("not issued") };
    assert_eq!(spiffe_id, SLEEP);
    assert_eq!(serial, leaf.serial_number().to_bn().expect("a number").to_hex_str().expect("digits").to_string());
}

#[tokio::test]
async fn lifetime_is_as_asked_up_to_the_cap_and_backdated() {
    let scene = Scene::with(CaOptions { max_ttl: Duration::from_secs(7200), ..CaOptions::default() }).await;
    let mut client = scene.client().await;
    for (asked, given) in [(3600, 3600), (7200, 7200), (7201, 7200), (i64::MAX, 7200), (0, 7200), (-5, 7200)] {
        let mut call = request(&csr(SLEEP), Some(&scene.token()));
        call.get_mut().validity_duration = asked;
        let chain = client.request(call).await.expect("a right call succeeds");
        assert_eq!(window(&x509(&chain[0])), (-120, given), "asked {asked}");
    }
    scene.ca.set_ttl(Some(Duration::from_secs(90)));
    let chain = client.call(&csr(SLEEP), Some(&scene.token())).await.expect("a right call succeeds");
    assert_eq!(window(&x509(&chain[0])), (-120, 90));
}

#[tokio::test]
async fn backdating_can_be_switched_off() {
    let scene = Scene::with(CaOptions { backdate: Duration::ZERO, ..CaOptions::default() }).await;
    let chain = scene.call_right().await.expect("a right call succeeds");
    assert_eq!(window(&x509(&chain[0])), (0, 3600));
}

#[tokio::test]
async fn several_roots_share_the_last_element() {
    let (second, third) = (Pki::new("second").root_pem(), Pki::new("third").root_pem());
    let scene = Scene::with(CaOptions { extra_roots: vec![second.clone()], ..CaOptions::default() }).await;
    let chain = scene.call_right().await.expect("a right call succeeds");
    assert_eq!((chain.len(), &chain[2]), (3, &(scene.pki.root_pem() + &second)));
    scene.ca.set_extra_roots(vec![second.clone(), third.clone()]);
    let chain = scene.call_right().await.expect("a right call succeeds");
    assert_eq!(X509::stack_from_pem(chain[2].as_bytes()).expect("a bundle").len(), 3);
}

#[tokio::test]
async fn another_identity_is_denied() {
    let scene = Scene::new().await;
    for other in [
        "spiffe://cluster.local/ns/bar/sa/sleep",
        "spiffe://cluster.local/ns/foo/sa/httpbin",
        "spiffe://other.domain/ns/foo/sa/sleep",
        "spiffe://cluster.local/ns/foo/sa/sleep/",
    ] {
        let status = scene.call(&csr(other), &scene.token()).await.expect_err("another identity is denied");
        assert_eq!(status.code(), Code::PermissionDenied, "{other}");
    }
}

#[tokio::test]
async fn a_csr_for_more_than_one_uri_is_invalid() {
    let scene = Scene::new().await;
    let base = CsrContent { uris: &[SLEEP], ..CsrContent::default() };
    let other = "spiffe://cluster.local/ns/bar/sa/sleep";
    let cases = [
        CsrContent { uris: &[SLEEP, other], ..base },
        CsrContent { uris: &[SLEEP, SLEEP], ..base },
        CsrContent { dns: &["istiod.istio-system.svc"], ..base },
        CsrContent { uris: &[], dns: &["sleep.foo"], ..base },
        CsrContent { common_name: Some("sleep"), ..base },
        CsrContent { second_san_extension: Some(other), ..base },
        CsrContent { ca: true, ..base },
        CsrContent { uris: &[], ..base },
    ];
    for (index, content) in cases.iter().enumerate() {
        let status = scene.call(&csr_by(&p256(), content), &scene.token()).await;
        let status = status.err().unwrap_or_else(|| panic!("case {index} is accepted"));
        assert_eq!(status.code(), Code::InvalidArgument, "case {index}: {status}");
    }
}

#[tokio::test]
async fn a_broken_csr_is_invalid() {
    let scene = Scene::new().await;
    let content = CsrContent { uris: &[SLEEP], ..CsrContent::default() };
    let weak = PKey::from_rsa(Rsa::generate(1024).expect("a key")).expect("a key");
    let mut der = build_csr(&p256(), &content).and_then(|csr| csr.to_der()).expect("a CSR");
    // The last byte belongs to the signature.
    *der.last_mut().expect("a CSR has bytes") ^= 1;
    let forged = openssl::x509::X509Req::from_der(&der).and_then(|csr| csr.to_pem()).expect("it still parses");
    let certificate = scene.pki.issue(&Leaf::workload(SLEEP, Duration::from_secs(60))).chain_pem;
    for (name, csr) in [
        ("empty", String::new()),
        ("garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_owned()),
        ("certificate", certificate),
        ("signature", String::from_utf8(forged).expect("PEM is ASCII")),
        ("RSA 1024", csr_by(&weak, &content)),
    ] {
        let status = scene.call(&csr, &scene.token()).await.expect_err("a broken CSR is refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
    }
}

#[tokio::test]
async fn rsa_keys_are_certified_too() {
    let scene = Scene::new().await;
    let key = PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key");
    let csr = csr_by(&key, &CsrContent { uris: &[SLEEP], ..CsrContent::default() });
    let chain = scene.call(&csr, &scene.token()).await.expect("a right call succeeds");
    assert!(x509(&chain[0]).public_key().expect("a key").public_eq(&key));
}

#[tokio::test]
async fn the_record_holds_headers_and_metadata_but_no_token() {
    let scene = Scene::new().await;
    let (csr, token) = (csr(SLEEP), scene.token());
    let mut call = request(&csr, Some(&token));
    call.metadata_mut().insert("clusterid", "Kubernetes".parse().expect("a header value"));
    let signer = Value { kind: Some(Kind::StringValue("clusterissuers.example".to_owned())) };
    call.get_mut().metadata = Some(Struct { fields: [("CertSigner".to_owned(), signer)].into() });
    scene.client().await.request(call).await.expect("a right call succeeds");
    scene.ca.wait_for_outcomes(1).await;
    let calls = scene.ca.calls();
    let [call] = calls.as_slice() else { panic!("one call was made, not {}", calls.len()) };
    assert_eq!(call.header("clusterid"), Some("Kubernetes"));
    assert_eq!(call.metadata, [("CertSigner".to_owned(), "clusterissuers.example".to_owned())]);
    assert_eq!((&call.csr, call.validity_duration, &call.peer), (&csr, 3600, &None));
    assert!(!format!("{call:?}").contains(token.rsplit('.').next().expect("a signature")));
}

fn verifies(leaf: &X509, intermediate: &X509, root: X509, purpose: X509PurposeId) -> bool {
    let mut store = X509StoreBuilder::new().expect("a store");
    store.add_cert(root).expect("a root");
    store.set_purpose(purpose).expect("a purpose");
    let mut untrusted = Stack::new().expect("a stack");
    untrusted.push(intermediate.clone()).expect("room for one");
    let mut context = X509StoreContext::new().expect("a context");
    context.init(&store.build(), leaf, &untrusted, |context| context.verify_cert()).expect("verification runs")
}

/// NotBefore and NotAfter relative to now; a few seconds of running time are forgiven.
fn window(certificate: &X509) -> (i64, i64) {
    let now = Asn1Time::days_from_now(0).expect("now");
    let seconds = |time: &openssl::asn1::Asn1TimeRef| {
        let difference = now.diff(time).expect("a difference");
        let exact = i64::from(difference.days) * 86_400 + i64::from(difference.secs);
        (exact + 5).div_euclid(10) * 10
    };
    (seconds(certificate.not_before()), seconds(certificate.not_after()))
}
