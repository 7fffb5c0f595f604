//! A CA that behaves as istio-csr in front of cert-manager does: what the guide says of it.

use std::{fs, time::Duration};

use testkit::{
    OrFail,
    development_ca::{CaOptions, ClientCertificates, Fault, Pki},
    fixture::{Open, Site, renew},
    workspace,
};
use tonic::Code;

/// Answers after a second or more, NotBefore is now, a bundle of several roots, an hour at the most whatever is asked
/// for, and no client certificates.
async fn scene() -> Result<Site, testkit::Failure> {
    let options = CaOptions {
        max_ttl: Duration::from_secs(3600),
        refuse_longer: false,
        backdate: Duration::ZERO,
        client_certificates: ClientCertificates::Off,
        extra_roots: vec![Pki::new("next").root_pem(), Pki::new("other").root_pem()],
        ..CaOptions::default()
    };
    let scene = Site::with(options).await?;
    scene.ca.set_fault(Some(Fault::Delay(Duration::from_millis(1200))));
    Ok(scene)
}

#[tokio::test]
async fn certificates_come_and_are_renewed() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = scene.shim().env("SECRET_TTL", "24h").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    let first = stream.next(&shim).await?.serial()?;
    assert_eq!(roots.next(&shim).await?.trust_anchors()?.len(), 3, "the whole bundle");
    renew(&shim)?;
    assert_ne!(stream.next(&shim).await?.serial()?, first);
    assert_eq!(scene.ca.calls().len(), 2);
    // An hour was issued where a day was asked for: that is what the renewal goes by.
    let line = shim.wait_for_log("certificate issued").await?;
    let wait = line.split("renewal_in_s=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| (1500..2400).contains(&wait)), "{line}");
    Ok(())
}

/// It is down, or does not know the cluster, or its API server is away: the word is the same.
#[tokio::test]
async fn unauthenticated_is_logged_with_the_request_and_an_outage_proves_nothing() -> testkit::Result {
    let scene = scene().await?;
    let shim = scene.shim().env("ISTIO_META_CLUSTER_ID", "east").env("SDS_SHIM_LOG", "debug");
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unauthenticated, "request authenticate failure".to_owned())));
    renew(&shim)?;
    let line = shim.wait_for_log("renewal failed").await?;
    let asked = "requested spiffe://cluster.local/ns/foo/sa/sleep with ClusterID east";
    assert!(line.contains(asked) && line.contains("can reach its API server"), "{line}");
    testkit::fixture::attempts::failed(&shim, 0, 4).await?;
    scene.ca.set_fault(None);
    stream.next(&shim).await?;
    assert_eq!(shim.log().count("the CA rejected our client certificate"), 0, "it was the API server");
    Ok(())
}

#[test]
fn the_guide_names_variables_that_there_are() {
    let page = fs::read_to_string(workspace().join("src/manual/guide/istio_csr.md")).or_fail("read the guide").unwrap();
    let known = fs::read_to_string(workspace().join("src/manual/reference/environment.md")).unwrap();
    let block = page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    assert!(block.lines().count() >= 5);
    for line in block.lines() {
        let (name, _) = line.split_once('=').unwrap_or_default();
        assert!(known.contains(&format!("| `{name}` |")), "{name}");
    }
}
