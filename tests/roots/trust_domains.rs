//! Several trust domains, each with anchors of its own, told apart by a real Envoy.

use std::{fs, time::Duration};

use testkit::{
    OrFail,
    development_ca::{Issued, Leaf, Pki},
    fixture::{Open, Site, write},
    mtls_server::{self, MtlsServer},
    shim::ShimBuilder,
};

const OURS: &str = mtls_server::PEER;
const THEIRS: &str = "spiffe://other.example/ns/bar/sa/peer";

fn peer(pki: &Pki, id: &str) -> Issued {
    pki.issue(&Leaf::workload(id, Duration::from_secs(3600)))
}

fn bundles(shim: ShimBuilder) -> ShimBuilder {
    shim.env("SDS_SHIM_BUNDLES", "other.example=./other.pem")
}

#[tokio::test]
async fn anchors_vouch_for_their_own_trust_domain_alone() -> testkit::Result {
    let (scene, other) = (Site::new().await?, Pki::new("other"));
    let file = scene.workload.path().join("other.pem");
    write(&file, &other.root_pem())?;
    let gate = MtlsServer::start(scene, &[OURS, THEIRS], bundles).await?;
    let ours = &gate.scene.pki;
    assert!(gate.lets_in(&peer(ours, OURS)).await?, "our own");
    assert!(gate.lets_in(&peer(&other, THEIRS)).await?, "the other one");
    assert!(!gate.lets_in(&peer(&other, OURS)).await?, "they must not vouch for ours");
    assert!(!gate.lets_in(&peer(ours, THEIRS)).await?, "nor we for theirs");
    // Their anchors change, and are followed.
    let next = Pki::new("next");
    let fresh = file.with_extension("fresh");
    write(&fresh, &next.root_pem())?;
    fs::rename(fresh, &file).or_fail("rename")?;
    gate.until("their new anchors count", || async { gate.lets_in(&peer(&next, THEIRS)).await }).await?;
    assert!(!gate.lets_in(&peer(&other, THEIRS)).await?, "the old ones are gone");
    assert_eq!(gate.scene.issued().len(), 1, "the CA was not asked for any of it");
    Ok(())
}

#[tokio::test]
async fn a_flat_list_of_anchors_vouches_for_everybody() -> testkit::Result {
    let (scene, other) = (Site::new().await?, Pki::new("other"));
    write(&scene.workload.path().join("other.pem"), &other.root_pem())?;
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_EXTRA_ROOTS", "./other.pem");
    let gate = MtlsServer::start(scene, &[OURS, THEIRS], edit).await?;
    assert!(gate.lets_in(&peer(&other, THEIRS)).await? && gate.lets_in(&peer(&other, OURS)).await?);
    Ok(())
}

/// The validator checks the whole chain against the lists, so there is one of the root as well.
#[tokio::test]
async fn revoked_peers_of_our_own_trust_domain_are_refused() -> testkit::Result {
    let (scene, other) = (Site::new().await?, Pki::new("other"));
    write(&scene.workload.path().join("other.pem"), &other.root_pem())?;
    let revoked = peer(&scene.pki, OURS);
    let lists = format!("{}{}", scene.pki.crl(&[&revoked], 600), scene.pki.root_crl(&[], 600));
    write(&scene.workload.path().join("lists.pem"), &lists)?;
    let edit = |shim| bundles(shim).env("SDS_SHIM_CRL", "./lists.pem");
    let gate = MtlsServer::start(scene, &[OURS, THEIRS], edit).await?;
    assert!(gate.lets_in(&peer(&gate.scene.pki, OURS)).await?);
    assert!(!gate.lets_in(&revoked).await?);
    assert!(gate.lets_in(&peer(&other, THEIRS)).await?, "the other domain has no lists");
    Ok(())
}

#[tokio::test]
async fn a_domain_whose_file_is_missing_takes_nothing_from_the_others() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = bundles(scene.shim()).start()?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    assert_eq!(roots.next(&shim).await?.trusted_ca_pem, scene.pki.root_pem());
    shim.wait_for_log("other.pem: No such file").await?;
    write(&scene.workload.path().join("other.pem"), &Pki::new("other").root_pem())?;
    roots.next(&shim).await?;
    Ok(())
}
