//! What is served: the same as over SDS, in the forms that clients of the Workload API take.

use openssl::x509::X509;
use testkit::{
    OrFail, Result,
    development_ca::{Leaf, Pki},
    fixture::{Pod, QUIET, secret, write},
    mount::{ID, ISTIO, Mount, WELL_KNOWN},
    sds,
    shim::ShimBuilder,
    workload_api::{Svid, certificates},
};

use crate::scene::{serve, socket, with_api};

fn der(certificates: &[X509]) -> Result<Vec<Vec<u8>>> {
    certificates.iter().map(|one| one.to_der().or_fail("write a certificate")).collect()
}

fn roots(pems: &[String]) -> Result<Vec<Vec<u8>>> {
    der(&X509::stack_from_pem(pems.concat().as_bytes()).or_fail("read the roots")?)
}

/// It is what an Envoy gets that asks now.
async fn is_the_same_as_over_sds(pod: &Pod, svid: &Svid) -> testkit::Result {
    let answer = pod.client.fetch(sds::request(&["default", "ROOTCA"])).await.or_fail("fetch")?;
    let (default, roots) = (secret(&answer, "default")?, secret(&answer, "ROOTCA")?);
    assert_eq!(svid.wire.spiffe_id, "spiffe://cluster.local/ns/foo/sa/sleep");
    assert_eq!([svid.wire.spiffe_id.clone()].to_vec(), default.spiffe_ids()?);
    assert_eq!(der(&svid.chain)?, der(&default.chain()?)?);
    assert_eq!(der(&svid.anchors)?, der(&roots.trust_anchors()?)?);
    assert!(default.key()?.public_eq(&svid.key));
    assert!(svid.wire.hint.is_empty() && svid.message.crl.is_empty());
    Ok(())
}

#[tokio::test]
async fn each_certificate_comes_as_it_does_over_sds_on_streams_that_never_end() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    let (first, mut updates) = api.svid().await?;
    is_the_same_as_over_sds(&pod, &first).await?;
    let mut bundles = api.bundles().await.or_fail("ask for bundles")?;
    let told = bundles.next().await?.bundles;
    assert_eq!(told.keys().collect::<Vec<_>>(), ["spiffe://cluster.local"]);
    assert_eq!(der(&certificates(&told["spiffe://cluster.local"])?)?, der(&first.anchors)?);
    let mut serials = vec![first.serial()];
    for _ in 0..5 {
        pod.rotate()?;
        let next = updates.svid().await?;
        is_the_same_as_over_sds(&pod, &next).await?;
        assert!(!serials.contains(&next.serial()), "the same twice");
        serials.push(next.serial());
    }
    // Another root is told to both, with the certificate that is held.
    let other = Pki::new("other").root_pem();
    pod.site.ca.set_extra_roots(vec![other.clone()]);
    pod.rotate()?;
    let bundle = bundles.next().await?.bundles["spiffe://cluster.local"].clone();
    let expected = roots(&[pod.site.pki.root_pem(), other])?;
    assert_eq!(der(&certificates(&bundle)?)?, expected);
    let mut next = updates.svid().await?;
    if serials.contains(&next.serial()) {
        next = updates.svid().await?;
    }
    is_the_same_as_over_sds(&pod, &next).await?;
    bundles.expect_silence(QUIET).await?;
    updates.expect_silence(QUIET).await
}

/// Whatever kind of key, and however Envoy is to have it: PKCS#8 in DER, which the kit insists on.
#[tokio::test]
async fn keys_of_every_kind_come_as_pkcs8() -> testkit::Result {
    for variables in [
        &[("PKCS8_KEY", "false")][..],
        &[("ECC_CURVE", "P384")],
        &[("ECC_CURVE", "P384"), ("PKCS8_KEY", "false")],
        &[("WORKLOAD_RSA_KEY_SIZE", "2048")],
        &[("WORKLOAD_RSA_KEY_SIZE", "2048"), ("PKCS8_KEY", "false")],
    ] {
        let edit = |shim: ShimBuilder| variables.iter().fold(shim, |shim, (name, value)| shim.env(*name, *value));
        let (pod, api) = serve(edit).await?;
        let (svid, mut updates) = api.svid().await?;
        is_the_same_as_over_sds(&pod, &svid).await?;
        pod.rotate()?;
        is_the_same_as_over_sds(&pod, &updates.svid().await?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn other_trust_domains_are_sent_as_federated() -> testkit::Result {
    let (own, other) = (Pki::new("own"), Pki::new("other"));
    let (pod, api) = serve(|shim| shim.env("SDS_SHIM_BUNDLES", "other.example=./other.pem")).await?;
    let (svid, mut updates) = api.svid().await?;
    assert!(svid.message.federated_bundles.is_empty());
    write(&pod.site.workload.path().join("other.pem"), &other.root_pem())?;
    let svid = updates.svid().await?;
    let told: Vec<_> = svid.message.federated_bundles.iter().collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, "spiffe://other.example");
    assert_eq!(der(&certificates(told[0].1)?)?, roots(&[other.root_pem()])?);
    assert_eq!(der(&svid.anchors)?, roots(&[pod.site.pki.root_pem()])?);
    let mut bundles = api.bundles().await.or_fail("ask for bundles")?;
    let told = bundles.next().await?.bundles;
    assert_eq!(told.keys().collect::<Vec<_>>(), ["spiffe://cluster.local", "spiffe://other.example"]);
    write(&pod.site.workload.path().join("other.pem"), &[other.root_pem(), own.root_pem()].concat())?;
    assert_eq!(certificates(&bundles.next().await?.bundles["spiffe://other.example"])?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn mounted_certificates_are_served_and_followed() -> testkit::Result {
    let site = testkit::fixture::Site::new().await?;
    let mount = Mount::new(&site, WELL_KNOWN, ISTIO)?;
    let shim = with_api(&site);
    let pod = site.serve_with(shim).await?;
    let api = testkit::workload_api::WorkloadApi::wait_for(&socket(&pod.site)).await?;
    let (_, mut updates) = api.svid().await?;
    for _ in 0..3 {
        let serial = mount.rotate()?;
        while updates.svid().await?.serial() != serial {}
    }
    Ok(())
}

/// Go's and Java's libraries take it, Python's and Rust's do not: so it is served, and the log says what is missing.
#[tokio::test]
async fn a_certificate_without_basic_constraints_is_served_with_a_warning() -> testkit::Result {
    const MISSING: &str = "the certificate has no basicConstraints";
    let site = testkit::fixture::Site::new().await?;
    let mount = Mount::new(&site, WELL_KNOWN, ISTIO)?;
    let shim = with_api(&site);
    let pod = site.serve_with(shim).await?;
    let api = testkit::workload_api::WorkloadApi::wait_for(&socket(&pod.site)).await?;
    let (_, mut updates) = api.svid().await?;
    assert_eq!(pod.shim.log().count(MISSING), 0, "the usual one has them");
    let leaf = Leaf { unconstrained: true, ..Leaf::workload(ID, testkit::PATIENCE) };
    let serial = mount.write_leaf(&leaf)?;
    while updates.svid().await?.serial() != serial {}
    pod.shim.wait_for_log(MISSING).await?;
    Ok(())
}

#[tokio::test]
async fn envoy_notices_nothing_of_it() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    let (mut stream, answer) = pod.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    let (_, _updates) = api.svid().await?;
    stream.expect_silence(QUIET).await?;
    drop((api, _updates));
    stream.expect_silence(QUIET).await
}
