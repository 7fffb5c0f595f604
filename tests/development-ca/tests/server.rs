//! TLS, plaintext, and the life of the server.

mod common;

use std::sync::Arc;

use common::{Connect, SLEEP, Scene, csr, x509};
use development_ca::{CaOptions, Leaf, Pki, TlsVersions};
use openssl::ssl::SslVersion;

#[tokio::test]
async fn both_tls_versions_are_spoken_and_can_be_narrowed() {
    let (old, new) = (SslVersion::TLS1_2, SslVersion::TLS1_3);
    for (tls, max_version, expected) in [
        (TlsVersions::Both, old, true),
        (TlsVersions::Both, new, true),
        (TlsVersions::Only12, new, true),
        (TlsVersions::Only13, old, false),
    ] {
        let scene = Scene::with(CaOptions { tls, ..CaOptions::default() }).await;
        let connected = scene.try_client(&Connect { max_version, ..Connect::default() }).await;
        assert_eq!(connected.is_ok(), expected, "{tls:?} {max_version:?}");
    }
}

#[tokio::test]
async fn the_server_certificate_carries_the_given_names() {
    let scene = Scene::new().await;
    for (server_name, expected) in
        [("istiod.istio-system.svc", true), ("localhost", true), ("istiod.elsewhere.svc", false)]
    {
        let connected = scene.try_client(&Connect { server_name, ..Connect::default() }).await;
        assert_eq!(connected.is_ok(), expected, "{server_name}");
    }
}

#[tokio::test]
async fn the_server_certificate_can_be_bad() {
    let expired = Leaf { not_before: -600, not_after: -300, ..Leaf::server(&["istiod.istio-system.svc"]) };
    let client_only = Leaf { server_auth: false, client_auth: true, ..Leaf::server(&["istiod.istio-system.svc"]) };
    for leaf in [expired, client_only] {
        let scene = Scene::with(CaOptions { server_leaf: Some(leaf.clone()), ..CaOptions::default() }).await;
        assert!(scene.try_client(&Connect::default()).await.is_err(), "{leaf:?}");
    }
}

#[tokio::test]
async fn the_server_can_stand_under_another_root() {
    let other = Arc::new(Pki::new("server root"));
    let scene = Scene::with(CaOptions { server_pki: Some(other.clone()), ..CaOptions::default() }).await;
    assert_eq!(scene.ca.root_pem(), other.root_pem());
    let chain = scene.call_right().await.expect("a right call succeeds");
    assert_eq!(chain[2], scene.pki.root_pem());
    let issuer = x509(&other.intermediate_pem());
    let certificate = scene.client().await.server_certificate.expect("a TLS server has a certificate");
    assert_eq!(issuer.issued(&certificate), openssl::x509::X509VerifyResult::OK);
}

#[tokio::test]
async fn plaintext_is_http2_without_tls() {
    let scene = Scene::with(CaOptions { plaintext: true, ..CaOptions::default() }).await;
    let mut client = scene.plaintext_client().await.expect("it connects");
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_ok());
    assert!(scene.try_client(&Connect::default()).await.is_err(), "TLS is not understood");
}

#[tokio::test]
async fn open_connections_can_be_closed() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_ok());
    scene.ca.disconnect();
    assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_err());
    assert!(scene.call_right().await.is_ok());
}

#[tokio::test]
async fn a_stopped_server_lets_go_of_port_and_connections() {
    let scene = Scene::new().await;
    let (mut client, address, token) = (scene.client().await, scene.ca.address(), scene.token());
    scene.ca.stop().await;
    assert!(client.call(&csr(SLEEP), Some(&token)).await.is_err());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn many_calls_share_a_connection() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    for _ in 0..20 {
        assert!(client.call(&csr(SLEEP), Some(&scene.token())).await.is_ok());
    }
    scene.ca.wait_for_outcomes(20).await;
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (20, 1));
}
