//! Certificate revocation lists: in `ROOTCA`, followed, and obeyed by a real Envoy.

mod ca_common;
mod gate;

use std::{fs, path::PathBuf, time::Duration};

use ca_common::{Open, Scene, Tested, write};
use gate::Gate;
use testkit::{
    Failure, OrFail,
    development_ca::{Issued, Leaf, Pki},
    shim::{Shim, ShimBuilder},
};

const ID: &str = "spiffe://cluster.local/ns/bar/sa/peer";

fn peer(pki: &Pki) -> Issued {
    pki.issue(&Leaf::workload(ID, Duration::from_secs(3600)))
}

fn file(scene: &Scene) -> PathBuf {
    scene.workload.path().join("./var/run/secrets/istio/crl/ca-crl.pem")
}

fn write_crl(scene: &Scene, pem: &str) -> Tested {
    let file = file(scene);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).or_fail("make the directory")?;
    }
    write(&file, pem)
}

fn as_it_is(shim: ShimBuilder) -> ShimBuilder {
    shim
}

#[tokio::test]
async fn a_revoked_peer_is_refused_by_envoy_from_then_on() -> Tested {
    let gate = Gate::start(Scene::new().await?, &[ID], as_it_is).await?;
    let (revoked, other) = (peer(&gate.scene.pki), peer(&gate.scene.pki));
    assert!(gate.lets_in(&revoked).await? && gate.lets_in(&other).await?);
    // A directory that was not there before, and a list of the leaf's own issuer alone.
    write_crl(&gate.scene, &gate.scene.pki.crl(&[&revoked], 600))?;
    gate.until("the revoked peer is refused", || async { Ok(!gate.lets_in(&revoked).await?) }).await?;
    assert!(gate.lets_in(&other).await?, "the others are not concerned");
    // A list that no longer has it (certificateHold, say) lets it in again.
    write_crl(&gate.scene, &gate.scene.pki.crl(&[], 600))?;
    gate.until("it is let in again", || gate.lets_in(&revoked)).await?;
    assert_eq!(gate.scene.issued().len(), 1, "the CA was not asked for any of it");
    Ok(())
}

#[tokio::test]
async fn an_expired_list_is_told_and_refuses_all_unless_that_is_not_wanted() -> Tested {
    for fail_open in [false, true] {
        let scene = Scene::new().await?;
        let list = scene.pki.crl(&[], 3);
        write_crl(&scene, &list)?;
        let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_CRL_FAIL_OPEN", fail_open.to_string());
        let mut gate = Gate::start(scene, &[ID], edit).await?;
        let peer = peer(&gate.scene.pki);
        gate.shim.wait_for_log("has expired at").await?;
        let metrics = gate.shim.admin("/metrics").await?.text();
        let is_served = metrics.contains("resource=\"ROOTCA\",kind=\"crl\",serial=\"O=");
        assert_eq!(is_served, !fail_open, "{metrics}");
        assert_eq!(gate.shim.admin("/readyz").await?.status, 200, "anchors and certificate are good");
        match fail_open {
            true => gate.until("the peer is let in", || gate.lets_in(&peer)).await?,
            false => gate.until("the peer is refused", || async { Ok(!gate.lets_in(&peer).await?) }).await?,
        }
        write_crl(&gate.scene, &gate.scene.pki.crl(&[], 600))?;
        gate.until("the peer is let in with the new list", || gate.lets_in(&peer)).await?;
    }
    Ok(())
}

async fn next(stream: &mut Open, shim: &Shim) -> Result<String, Failure> {
    Ok(stream.next(shim).await?.crl_pem)
}

#[tokio::test]
async fn the_lists_are_followed_and_the_last_good_ones_stay() -> Tested {
    let scene = Scene::new().await?;
    let path = scene.workload.path().join("lists.pem");
    let (one, two) = (scene.pki.crl(&[], 600), scene.pki.root_crl(&[], 600));
    write(&path, &format!("{one}{two}"))?;
    let mut shim = scene.shim().env("SDS_SHIM_CRL", "./lists.pem").start()?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(next(&mut roots, &shim).await?, format!("{one}{two}"));
    write(&path, "nonsense")?;
    shim.wait_for_log("it holds no PEM CRL; 2 of it are served").await?;
    fs::remove_file(&path).or_fail("remove the lists")?;
    shim.wait_for_log("No such file").await?;
    roots.expect_silence(&shim).await?;
    write(&path, &two)?;
    shim.wait_for_log("which issued our own certificate: Envoy refuses peers").await?;
    assert_eq!(next(&mut roots, &shim).await?, two);
    Ok(())
}
