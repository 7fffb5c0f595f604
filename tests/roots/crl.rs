//! Certificate revocation lists: in `ROOTCA`, followed, and obeyed by a real Envoy.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

use testkit::{
    Failure, OrFail,
    development_ca::{CrlOptions, Issued, Lifetime, Pki},
    fixture::{Open, Site, write},
    mtls_server::{MtlsServer, PEER, peer},
    shim::{Shim, ShimBuilder},
};
use tokio::time::sleep;

fn write_crl(scene: &Site, pem: &str) -> testkit::Result {
    write(&scene.lists()?, pem)
}

fn as_it_is(shim: ShimBuilder) -> ShimBuilder {
    shim
}

#[tokio::test]
async fn a_revoked_peer_is_refused_by_envoy_from_then_on() -> testkit::Result {
    let gate = MtlsServer::start(Site::new().await?, &[PEER], as_it_is).await?;
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
async fn an_expired_list_rejects_all_peers_unless_failing_open() -> testkit::Result {
    for fail_open in [false, true] {
        let scene = Site::new().await?;
        let list = scene.pki.crl(&[], 3);
        write_crl(&scene, &list)?;
        let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_CRL_FAIL_OPEN", fail_open.to_string());
        let mut gate = MtlsServer::start(scene, &[PEER], edit).await?;
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
async fn the_lists_are_followed_and_the_last_good_ones_stay() -> testkit::Result {
    let scene = Site::new().await?;
    let path = scene.workload.path().join("lists.pem");
    let (one, two) = (scene.pki.crl(&[], 600), scene.pki.root_crl(&[], 600));
    write(&path, &format!("{one}{two}"))?;
    let mut shim = scene.shim().env("SDS_SHIM_CRL", "./lists.pem").start()?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(next(&mut roots, &shim).await?, format!("{one}{two}"));
    write(&path, "nonsense")?;
    shim.wait_for_log("it holds no PEM CRL; 2 in use").await?;
    fs::remove_file(&path).or_fail("remove the lists")?;
    shim.wait_for_log("No such file").await?;
    roots.expect_silence(&shim).await?;
    write(&path, &two)?;
    shim.wait_for_log("which issued our own certificate: Envoy rejects peers").await?;
    assert_eq!(next(&mut roots, &shim).await?, two);
    Ok(())
}

/// As Istio takes back the lists of a mesh.
#[tokio::test]
async fn a_file_without_bytes_withdraws_the_lists() -> testkit::Result {
    let scene = Site::new().await?;
    let revoked = peer(&scene.pki);
    write_crl(&scene, &scene.pki.crl(&[&revoked], 600))?;
    let mut gate = MtlsServer::start(scene, &[PEER], as_it_is).await?;
    assert!(!gate.lets_in(&revoked).await?);
    let mark = gate.shim.log().mark();
    let since = Instant::now();
    write_crl(&gate.scene, "")?;
    let line = gate.shim.wait_for_log_after(mark, "is empty, so no lists are served").await?;
    assert!(line.contains("INFO") && since.elapsed() < Duration::from_secs(1), "{line} after {:?}", since.elapsed());
    gate.until("the revoked peer is let in", || gate.lets_in(&revoked)).await?;
    assert!(!gate.shim.admin("/metrics").await?.text().contains("kind=\"crl\""), "the series is there");
    // As it is after a restart.
    let mut gate = MtlsServer::start(gate.end(), &[PEER], as_it_is).await?;
    assert!(gate.lets_in(&revoked).await?);
    assert_eq!(gate.shim.admin("/readyz").await?.text(), "ok\n");
    write_crl(&gate.scene, &gate.scene.pki.crl(&[&revoked], 600))?;
    gate.until("it is refused", || async { Ok(!gate.lets_in(&revoked).await?) }).await
}

#[tokio::test]
async fn nonsense_and_a_vanished_file_keep_the_lists_and_their_end_says_what_to_do() -> testkit::Result {
    let scene = Site::new().await?;
    let revoked = peer(&scene.pki);
    write_crl(&scene, &scene.pki.crl(&[&revoked], 8))?;
    let gate = MtlsServer::start(scene, &[PEER], as_it_is).await?;
    write_crl(&gate.scene, "nonsense")?;
    gate.shim.wait_for_log("it holds no PEM CRL; 1 in use").await?;
    assert!(!gate.lets_in(&revoked).await?);
    fs::remove_file(gate.scene.lists()?).or_fail("remove the list")?;
    gate.shim.wait_for_log("No such file").await?;
    assert!(!gate.lets_in(&revoked).await?);
    let line = gate.shim.wait_for_log("has expired at").await?;
    assert!(line.contains("until there is a newer one") && line.contains("0 bytes withdraws"), "{line}");
    assert!(line.contains("No such file"), "{line}");
    gate.until("all are refused", || async { Ok(!gate.lets_in(&peer(&gate.scene.pki)).await?) }).await
}

fn with_life(scene: &Site, revoked: &[&Issued], not_before: i64, not_after: i64) -> String {
    let life = Lifetime { not_before, not_after };
    scene.pki.crl_with(revoked, &CrlOptions { life, ..CrlOptions::fresh_for(600) })
}

/// An authority that is renewed appends its new list.
#[tokio::test]
async fn of_two_lists_of_one_issuer_the_newest_counts() -> testkit::Result {
    for (fail_open, new_first) in [(false, false), (true, false), (true, true)] {
        let scene = Site::new().await?;
        let revoked = peer(&scene.pki);
        let (old, new) = (with_life(&scene, &[], -7200, -60), with_life(&scene, &[&revoked], -60, 600));
        write_crl(&scene, &if new_first { new + &old } else { old + &new })?;
        let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_CRL_FAIL_OPEN", fail_open.to_string());
        let gate = MtlsServer::start(scene, &[PEER], edit).await?;
        assert!(!gate.lets_in(&revoked).await? && gate.lets_in(&peer(&gate.scene.pki)).await?, "{fail_open}");
        assert!(!gate.shim.log().contains("the certificate expired at"), "{fail_open}");
    }
    Ok(())
}

/// A CA's clock may be ahead of ours.
#[tokio::test]
async fn the_former_list_is_served_until_the_new_one_begins() -> testkit::Result {
    let scene = Site::new().await?;
    let (first, second) = (peer(&scene.pki), peer(&scene.pki));
    write_crl(&scene, &with_life(&scene, &[&first], -60, 600))?;
    let gate = MtlsServer::start(scene, &[PEER], as_it_is).await?;
    assert!(!gate.lets_in(&first).await? && gate.lets_in(&second).await?);
    const AHEAD: u64 = 5;
    let begins = SystemTime::now() + Duration::from_secs(AHEAD);
    write_crl(&gate.scene, &with_life(&gate.scene, &[&second], AHEAD as i64, 600))?;
    gate.shim.wait_for_log("still serving the previous one").await?;
    while SystemTime::now() + Duration::from_secs(1) < begins {
        assert!(!gate.lets_in(&first).await? && gate.lets_in(&second).await?, "the former list counts");
        sleep(Duration::from_millis(200)).await;
    }
    gate.until("the new one counts", || async { Ok(!gate.lets_in(&second).await?) }).await?;
    let late = SystemTime::now().duration_since(begins).unwrap_or_default();
    assert!(late < Duration::from_secs(2), "{late:?} late");
    assert!(gate.lets_in(&first).await?);
    Ok(())
}

/// A peer whose CA is revoked.
#[tokio::test]
async fn whole_chains_are_checked_where_there_are_lists_for_them() -> testkit::Result {
    let scene = Site::new().await?;
    let pki = scene.pki.clone();
    let lists = pki.crl(&[], 600) + &pki.root_crl(&[&pki.as_issued()], 600);
    // Without the root's list, leaves alone.
    write_crl(&scene, &pki.crl(&[], 600))?;
    let gate = MtlsServer::start(scene, &[PEER], as_it_is).await?;
    assert!(gate.lets_in(&peer(&pki)).await?);
    write_crl(&gate.scene, &lists)?;
    gate.until("it is refused", || async { Ok(!gate.lets_in(&peer(&pki)).await?) }).await?;
    gate.shim.wait_for_log("Envoy checks whole chains").await?;
    // A root of which there is no list: the one that is there has no effect, and that is told.
    let other = Pki::new("other");
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_EXTRA_ROOTS", "./other.pem");
    write(&gate.scene.workload.path().join("other.pem"), &other.root_pem())?;
    let gate = MtlsServer::start(gate.end(), &[PEER], edit).await?;
    gate.shim.wait_for_log("has no effect on the CA certificates that it names").await?;
    assert!(gate.lets_in(&peer(&pki)).await?);
    write_crl(&gate.scene, &(lists + &other.root_crl(&[], 600)))?;
    gate.until("it is refused", || async { Ok(!gate.lets_in(&peer(&pki)).await?) }).await?;
    // Unless that is not wanted.
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_CRL_LEAF_ONLY", "true");
    let gate = MtlsServer::start(gate.end(), &[PEER], edit).await?;
    assert!(gate.lets_in(&peer(&pki)).await?);
    gate.shim.wait_for_log("because of SDS_SHIM_CRL_LEAF_ONLY").await?;
    Ok(())
}
