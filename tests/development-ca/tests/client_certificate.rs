//! Client certificates: instead of a token, beside it, required, refused.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Connect, SLEEP, Scene, csr};
use development_ca::{CaOptions, ClientCertificates, DevelopmentCa, Issued, Leaf, Outcome, Peer, Pki, TokenRequest};
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);

fn workload(pki: &Pki, spiffe_id: &str) -> Issued {
    pki.issue(&Leaf::workload(spiffe_id, HOUR))
}

/// Connects with the certificate and calls; an alert in TLS 1.3 reaches the client only with its first read.
async fn call(scene: &Scene, connect: &Connect, token: Option<&str>) -> Result<Vec<String>, String> {
    let mut client = scene.try_client(connect).await.map_err(|error| error.to_string())?;
    client.call(&csr(SLEEP), token).await.map_err(|status| format!("{:?}", status.code()))
}

#[tokio::test]
async fn a_certificate_speaks_alone() {
    let scene = Scene::new().await;
    let chain = call(&scene, &Connect::with(workload(&scene.pki, SLEEP)), None).await.expect("it authenticates");
    assert_eq!(chain.len(), 3);
    let calls = scene.ca.calls();
    assert!(matches!(&calls[0].peer, Some(Peer { spiffe_id: Some(id), .. }) if id == SLEEP));
    assert_eq!(calls[0].authorization, None);
}

#[tokio::test]
async fn a_certificate_that_the_ca_answered_is_good_for_the_next_call() {
    let scene = Scene::new().await;
    let key = common::p256();
    let content = common::CsrContent { uris: &[SLEEP], ..Default::default() };
    let chain = scene.call(&common::csr_by(&key, &content), &scene.token()).await.expect("a right call succeeds");
    let key_pem = String::from_utf8(key.private_key_to_pem_pkcs8().expect("PEM")).expect("PEM is ASCII");
    for chain_pem in [chain[..2].concat(), chain[0].clone()] {
        let connect = Connect::with(Issued { chain_pem, key_pem: key_pem.clone() });
        assert!(call(&scene, &connect, None).await.is_ok());
    }
}

#[tokio::test]
async fn token_and_certificate_must_agree() {
    let scene = Scene::new().await;
    let own = Connect::with(workload(&scene.pki, SLEEP));
    assert!(call(&scene, &own, Some(&scene.token())).await.is_ok());
    let other = Connect::with(workload(&scene.pki, "spiffe://cluster.local/ns/bar/sa/sleep"));
    assert_eq!(call(&scene, &other, Some(&scene.token())).await, Err("Unauthenticated".to_owned()));
    let expired = scene.tokens.mint(&TokenRequest { lifetime: -2, ..TokenRequest::new("foo", "sleep") });
    assert_eq!(call(&scene, &own, Some(&expired)).await, Err("Unauthenticated".to_owned()));
    let reasons: Vec<_> = scene.ca.calls().into_iter().map(|call| call.outcome).collect();
    let refused = |text: &str| Outcome::Refused { code: Code::Unauthenticated, reason: text.to_owned() };
    assert_eq!(
        reasons[1],
        refused(&format!("the token is of {SLEEP}, the client certificate of spiffe://cluster.local/ns/bar/sa/sleep"))
    );
    assert_eq!(reasons[2], refused("the token has expired"));
}

#[tokio::test]
async fn a_certificate_asks_for_its_own_identity_only() {
    let scene = Scene::new().await;
    let other = Connect::with(workload(&scene.pki, "spiffe://cluster.local/ns/bar/sa/sleep"));
    assert_eq!(call(&scene, &other, None).await, Err("PermissionDenied".to_owned()));
}

#[tokio::test]
async fn a_certificate_without_a_single_spiffe_id_is_rejected() {
    let scene = Scene::new().await;
    let base = Leaf::workload(SLEEP, HOUR);
    let two = Leaf { uri: vec![SLEEP.to_owned(), SLEEP.to_owned()], ..base.clone() };
    let dns_too = Leaf { dns: vec!["sleep".to_owned()], ..base.clone() };
    let elsewhere = Leaf::workload("spiffe://elsewhere/ns/foo/sa/sleep", HOUR);
    let nothing = Leaf { uri: Vec::new(), ..base };
    for leaf in [two, dns_too, elsewhere, nothing] {
        let connect = Connect::with(scene.pki.issue(&leaf));
        assert_eq!(call(&scene, &connect, None).await, Err("Unauthenticated".to_owned()), "{leaf:?}");
        assert!(call(&scene, &connect, Some(&scene.token())).await.is_ok(), "the token still speaks: {leaf:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_verify_fails_the_handshake() {
    let scene = Scene::new().await;
    let foreign = Pki::new("foreign").issue(&Leaf::workload(SLEEP, HOUR));
    let expired = scene.pki.issue(&Leaf { not_before: -3600, not_after: -2, ..Leaf::workload(SLEEP, HOUR) });
    let server_only = scene.pki.issue(&Leaf { client_auth: false, ..Leaf::workload(SLEEP, HOUR) });
    for certificate in [foreign, expired, server_only] {
        assert!(call(&scene, &Connect::with(certificate), Some(&scene.token())).await.is_err());
    }
    assert_eq!(scene.ca.calls().len(), 0);
    assert_eq!(scene.ca.connections(), 3);
}

#[tokio::test]
async fn a_certificate_can_be_required_or_left_unasked() {
    let scene =
        Scene::with(CaOptions { client_certificates: ClientCertificates::Require, ..CaOptions::default() }).await;
    let with = Connect::with(workload(&scene.pki, SLEEP));
    assert!(call(&scene, &Connect::default(), Some(&scene.token())).await.is_err());
    assert_eq!(scene.ca.calls().len(), 0);
    assert!(call(&scene, &with, Some(&scene.token())).await.is_ok());
    scene.ca.set_client_certificates(ClientCertificates::Off);
    assert!(call(&scene, &with, Some(&scene.token())).await.is_ok());
    assert_eq!(scene.ca.calls().pop().and_then(|call| call.peer), None);
    assert_eq!(call(&scene, &with, None).await, Err("Unauthenticated".to_owned()));
}

#[tokio::test]
async fn a_replaced_ca_refuses_the_old_certificate() {
    let Scene { ca, pki, tokens } = Scene::new().await;
    let old = Connect::with(workload(&pki, SLEEP));
    let pki = Arc::new(Pki::new("replacement"));
    let options = CaOptions { listen: ca.address(), ..CaOptions::default() };
    ca.stop().await;
    let ca = DevelopmentCa::start(pki.clone(), tokens.clone(), options).await.expect("the port is free again");
    let scene = Scene { ca, pki, tokens };
    assert!(call(&scene, &old, Some(&scene.token())).await.is_err());
    assert!(call(&scene, &Connect::default(), Some(&scene.token())).await.is_ok());
}
