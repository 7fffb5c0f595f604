//! Client certificates towards the CA: when one is presented, and what happens when the CA does not want it.

use std::{path::Path, time::Duration};

use openssl::x509::X509;
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Call, ClientCertificates, Fault, Issued, Leaf, Pki, TlsVersions, TokenRequest},
    fixture::{Open, Site, issued_serial, plain_serial, reconnect, renew, token, tokens, within, write},
    shim::{Shim, ShimBuilder},
    tls,
    workload::spiffe_id,
};

const HOUR: Duration = Duration::from_secs(3600);
const REFUSED: &str = "the CA rejected our client certificate";

/// The credentials of a call: whether it carried a token, and the serial number of its client certificate.
fn credentials(call: &Call) -> (bool, Option<String>) {
    (call.authorization.is_some(), call.peer.as_ref().map(|peer| plain_serial(&peer.serial)))
}

fn all_credentials(scene: &Site) -> Vec<(bool, Option<String>)> {
    scene.ca.calls().iter().map(credentials).collect()
}

fn serial(issued: &Issued) -> Result<String, Failure> {
    tls::serial(&X509::from_pem(issued.chain_pem.as_bytes()).or_fail("read a certificate")?)
}

fn with_provisioned(shim: ShimBuilder, directory: &Path) -> ShimBuilder {
    shim.env("PROV_CERT", directory.display().to_string())
}

/// Starts `shim` and waits for its first certificate.
async fn started(shim: ShimBuilder) -> Result<(Shim, Open, String), Failure> {
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;
    Ok((shim, stream, first))
}

#[tokio::test]
async fn our_own_certificate_is_presented_beside_the_token_once_we_hold_it() -> testkit::Result {
    for tls in [TlsVersions::Only12, TlsVersions::Only13] {
        let scene = Site::with_tls(tls).await?;
        let (shim, mut stream, first) = started(scene.shim()).await?;
        renew(&shim)?;
        let second = stream.next(&shim).await?.serial()?;
        renew(&shim)?;
        stream.next(&shim).await?;
        assert_eq!(all_credentials(&scene), [(true, None), (true, Some(first)), (true, Some(second))]);
        assert_eq!(scene.ca.connections(), 3, "{tls:?}");
        let identity = scene.ca.calls()[1].peer.as_ref().and_then(|peer| peer.spiffe_id.clone());
        assert_eq!(identity, Some(scene.workload.spiffe_id()));
    }
    Ok(())
}

#[tokio::test]
async fn the_provisioned_certificate_is_presented_from_the_first_call_on() -> testkit::Result {
    let scene = Site::new().await?;
    let (one, two) = (scene.issue(&scene.workload.spiffe_id()), scene.issue(&scene.workload.spiffe_id()));
    let directory = scene.provision(&one)?;
    // Its root-cert.pem is what the CA is verified with.
    scene.write_root("")?;
    let (shim, mut stream, _) = started(with_provisioned(scene.shim(), &directory)).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    scene.provision(&two)?;
    renew(&shim)?;
    stream.next(&shim).await?;
    let (one, two) = (Some(serial(&one)?), Some(serial(&two)?));
    assert_eq!(all_credentials(&scene), [(true, one.clone()), (true, one), (true, two)], "read anew for each call");
    Ok(())
}

#[tokio::test]
async fn an_expired_provisioned_certificate_is_left_out() -> testkit::Result {
    let scene = Site::new().await?;
    let leaf =
        Leaf { not_before: -7200, not_after: -3600, ..Leaf::workload(&scene.workload.spiffe_id(), Duration::ZERO) };
    let directory = scene.provision(&scene.pki.issue(&leaf))?;
    let (shim, ..) = started(with_provisioned(scene.shim(), &directory)).await?;
    assert_eq!(all_credentials(&scene), [(true, None)]);
    assert!(shim.log().contains("PROV_CERT: ") && shim.log().contains("cert-chain.pem: it expired at "));
    Ok(())
}

/// With PROV_CERT spoilt in one file, that is named; the token is enough, unless the certificate must be presented, and
/// then a good file that takes its place is enough.
async fn spoilt_is_named(file: &str, content: Option<&str>, reason: &str) -> testkit::Result {
    for mode in ["auto", "always"] {
        let scene = Site::new().await?;
        let issued = scene.issue(&scene.workload.spiffe_id());
        let directory = scene.provision(&issued)?;
        match content {
            Some(content) => write(&directory.join(file), content)?,
            None => std::fs::remove_file(directory.join(file)).or_fail("remove a file of PROV_CERT")?,
        }
        let mut shim = with_provisioned(scene.shim(), &directory).env("SDS_SHIM_CA_MTLS", mode).start()?;
        let line = shim.wait_for_log("client certificate in PROV_CERT: ").await?;
        assert!(line.contains(file) && line.contains(reason), "{line}");
        if mode == "auto" {
            let mut stream = Open::connect(&mut shim, "default").await?;
            let first = stream.next(&shim).await?.serial()?;
            renew(&shim)?;
            stream.next(&shim).await?;
            assert_eq!(all_credentials(&scene), [(true, None), (true, Some(first))]);
            assert_eq!(shim.log().count("client certificate in PROV_CERT: "), 1, "said once");
            continue;
        }
        assert_eq!(scene.ca.calls().len(), 0);
        scene.provision(&issued)?;
        Open::connect(&mut shim, "default").await?.next(&shim).await?;
        assert_eq!(all_credentials(&scene), [(true, Some(serial(&issued)?))]);
    }
    Ok(())
}

#[tokio::test]
async fn a_broken_prov_cert_is_named_and_can_be_repaired() -> testkit::Result {
    let foreign = Pki::new("other").issue(&Leaf::workload(&spiffe_id("foo", "sleep"), HOUR));
    spoilt_is_named("key.pem", None, "No such file").await?;
    spoilt_is_named("key.pem", Some("garbage"), "holds no PEM private key").await?;
    spoilt_is_named("key.pem", Some(&foreign.key_pem), "the key does not belong to cert-chain.pem").await?;
    spoilt_is_named("cert-chain.pem", None, "No such file").await?;
    spoilt_is_named("cert-chain.pem", Some(""), "it holds no PEM certificate").await
}

async fn falls_back_in_the_same_attempt(tls: TlsVersions) -> testkit::Result {
    let scene = Site::with_tls(tls).await?;
    let (shim, mut stream, _) = started(scene.shim()).await?;
    scene.ca.set_fault(Some(Fault::RefuseClientCertificate));
    for _ in 0..3 {
        renew(&shim)?;
        stream.next(&shim).await?;
    }
    assert_eq!(all_credentials(&scene), vec![(true, None); 4]);
    assert_eq!(scene.ca.connections(), 1 + 3 * 2, "{tls:?}: one handshake in vain for each new certificate");
    assert_eq!(shim.log().count("renewal failed"), 0, "{tls:?}: the attempt did not fail");
    assert_eq!(shim.log().count(REFUSED), 1, "{tls:?}: said once");
    Ok(())
}

#[tokio::test]
async fn a_refusal_in_the_handshake_of_tls_1_2_falls_back_to_the_token() -> testkit::Result {
    falls_back_in_the_same_attempt(TlsVersions::Only12).await
}

#[tokio::test]
async fn a_refusal_after_the_handshake_of_tls_1_3_falls_back_to_the_token() -> testkit::Result {
    falls_back_in_the_same_attempt(TlsVersions::Only13).await
}

#[tokio::test]
async fn a_replaced_ca_gets_the_token_alone() -> testkit::Result {
    // The CA's own PKI is another one now: our certificate is of the old one, as after an istiod without its old root.
    let scene = Site::new().await?;
    let foreign = Pki::new("old").issue(&Leaf::workload(&scene.workload.spiffe_id(), HOUR));
    let directory = scene.provision(&foreign)?;
    let (shim, mut stream, _) = started(with_provisioned(scene.shim(), &directory)).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(all_credentials(&scene), [(true, None), (true, None)]);
    assert_eq!(scene.ca.connections(), 3, "a provisioned certificate that was refused is not presented again");
    assert_eq!(shim.log().count(REFUSED), 1);
    Ok(())
}

#[tokio::test]
async fn a_refusal_by_unauthenticated_falls_back_to_the_token() -> testkit::Result {
    // The CA verifies the certificate, but does not accept it beside a token of somebody else.
    let scene = Site::new().await?;
    let theirs = scene.issue(&spiffe_id("foo", "other"));
    let directory = scene.provision(&theirs)?;
    let (shim, mut stream, _) = started(with_provisioned(scene.shim(), &directory)).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(all_credentials(&scene), [(true, Some(serial(&theirs)?)), (true, None), (true, None)]);
    assert_eq!(shim.log().count(REFUSED), 1);
    Ok(())
}

fn requiring() -> CaOptions {
    CaOptions { client_certificates: ClientCertificates::Require, ..CaOptions::default() }
}

#[tokio::test]
async fn a_ca_that_requires_certificates_is_content_with_prov_cert() -> testkit::Result {
    for mode in ["auto", "always"] {
        let scene = Site::with(requiring()).await?;
        let directory = scene.provision(&scene.issue(&scene.workload.spiffe_id()))?;
        let shim = with_provisioned(scene.shim(), &directory).env("SDS_SHIM_CA_MTLS", mode);
        let (shim, mut stream, _) = started(shim).await?;
        renew(&shim)?;
        stream.next(&shim).await?;
        assert_eq!(scene.issued().len(), 2, "{mode}");
    }
    Ok(())
}

#[tokio::test]
async fn that_the_ca_requires_a_certificate_is_named() -> testkit::Result {
    for (tls, alert) in [(TlsVersions::Only12, "handshake failure"), (TlsVersions::Only13, "certificate required")] {
        let scene = Site::with(CaOptions { tls, ..requiring() }).await?;
        let mut shim = scene.shim().start()?;
        let line = shim.wait_for_log("cannot obtain a certificate: ").await?;
        assert!(line.contains(alert), "{tls:?}: {line}");
        scene.ca.set_client_certificates(ClientCertificates::Accept);
        Open::connect(&mut shim, "default").await?.next(&shim).await?;
    }
    Ok(())
}

#[tokio::test]
async fn never_presents_no_client_certificate() -> testkit::Result {
    let scene = Site::new().await?;
    let directory = scene.provision(&scene.issue(&scene.workload.spiffe_id()))?;
    let shim = with_provisioned(scene.shim(), &directory).env("SDS_SHIM_CA_MTLS", "never");
    let (shim, mut stream, _) = started(shim).await?;
    for _ in 0..2 {
        renew(&shim)?;
        stream.next(&shim).await?;
    }
    assert_eq!(all_credentials(&scene), vec![(true, None); 3]);
    Ok(())
}

#[tokio::test]
async fn always_without_prov_cert_is_a_mistake() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_CA_MTLS", "always").start()?;
    assert_eq!(shim.wait_exit().await?.code(), Some(64));
    let lines = shim.log().lines().join("\n");
    assert!(lines.contains("SDS_SHIM_CA_MTLS") && lines.contains("PROV_CERT"), "{lines}");
    assert_eq!(scene.ca.connections(), 0);
    Ok(())
}

#[tokio::test]
async fn always_makes_no_call_without_a_certificate() -> testkit::Result {
    let scene = Site::new().await?;
    let good = scene.issue(&scene.workload.spiffe_id());
    let leaf =
        Leaf { not_before: -7200, not_after: -3600, ..Leaf::workload(&scene.workload.spiffe_id(), Duration::ZERO) };
    let directory = scene.provision(&scene.pki.issue(&leaf))?;
    let mut shim = with_provisioned(scene.shim(), &directory).env("SDS_SHIM_CA_MTLS", "always").start()?;
    shim.wait_for_log("cert-chain.pem: it expired at ").await?;
    assert_eq!(scene.ca.connections(), 0);
    scene.provision(&good)?;
    scene.ca.set_fault(Some(Fault::RefuseClientCertificate));
    shim.wait_for_log("the CA rejected the client certificate: ").await?;
    within(&shim, "more tries", scene.ca.wait_for_connections(3)).await?;
    assert_eq!(all_credentials(&scene), []);
    scene.ca.set_fault(None);
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(all_credentials(&scene), [(true, Some(serial(&good)?))]);
    Ok(())
}

#[tokio::test]
async fn with_an_expired_token_the_certificate_speaks_alone() -> testkit::Result {
    let mut scene = Site::new().await?;
    let (shim, mut stream, first) = started(scene.shim()).await?;
    scene.write_token(&expired())?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(all_credentials(&scene), [(true, None), (false, Some(first)), (false, Some(second.clone()))]);
    assert_eq!(issued_serial(&scene.ca.calls()[1]), Some(second));
    Ok(())
}

fn expired() -> String {
    tokens().mint(&TokenRequest { not_before: -7200, lifetime: -3600, ..TokenRequest::new("foo", "sleep") })
}

#[tokio::test]
async fn a_provisioned_certificate_alone_is_enough_for_the_first_call() -> testkit::Result {
    let mut scene = Site::new().await?;
    scene.workload.remove_token().or_fail("remove the token")?;
    let issued = scene.issue(&scene.workload.spiffe_id());
    let directory = scene.provision(&issued)?;
    started(with_provisioned(scene.shim(), &directory)).await?;
    assert_eq!(all_credentials(&scene), [(false, Some(serial(&issued)?))]);
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_is_refused_alone_waits_for_a_token() -> testkit::Result {
    let mut scene = Site::new().await?;
    let (mut shim, mut stream, first) = started(scene.shim()).await?;
    scene.write_token(&expired())?;
    // Not asked for any more, so that the CA sees neither token nor certificate.
    scene.ca.set_client_certificates(ClientCertificates::Off);
    renew(&shim)?;
    let line = shim.wait_for_log("the CA did not accept our certificate alone").await?;
    assert!(line.contains("the token expired") && line.contains("UNAUTHENTICATED"), "{line}");
    reconnect(&mut shim, 20).await?;
    assert_eq!(scene.ca.calls().len(), 2, "no storm of calls that cannot succeed");
    assert_eq!(Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?, first);
    scene.write_token(&token())?;
    stream.next(&shim).await?;
    assert_eq!(all_credentials(&scene), [(true, None), (false, None), (true, None)]);
    Ok(())
}
