//! Bundles as clouds and browsers have them: hundreds of roots, a megabyte of text, with the usual memory. As trust for
//! the CA's connection, in ROOTCA from a file, and from the CA's answer; and what does not fit is told, by `check` as well.
//! These tests start the shim as another user, so they need root.

use std::fs;

use crate::odd::{forms::Parts, signed};
use nix::sys::signal::Signal;
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::PKey,
};
use testkit::{
    Failure, OrFail,
    anchors::with_long_names,
    confined::{Confinement, MEMLOCK},
    fixture::{Open, Site, renew, write},
    mtls_server::MtlsServer,
    sds::SdsClient,
    shim::{Shim, ShimBuilder},
};

/// Roots of a large bundle, and bytes of text of all of them, nearly.
const ROOTS: usize = 400;
const BYTES: usize = 1 << 20;

/// So many roots, each of as many bytes as those of the large bundle have.
fn roots(count: usize) -> Vec<String> {
    const MORE: usize = 1490;
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
    let root = Parts::root(&key.public_key_to_der().expect("a public key"));
    let pem = |der: Vec<u8>| {
        let base64 = openssl::base64::encode_block(&der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    (0..count).map(|number| pem(signed(&root.numbered(number, MORE).content(), &key))).collect()
}

fn count(pem: &str) -> usize {
    pem.matches("-----BEGIN CERTIFICATE-----").count()
}

/// A shim as it runs in a sidecar, which serves all of the bundle's roots and its CA's own, over renewals, to several
/// streams on several connections, within its memory.
async fn serves_all(scene: &Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Shim, Failure> {
    let mut shim = edit(scene.shim().confined(Confinement::default())).start()?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    let mut certificate = Open::connect(&mut shim, "default").await?;
    let mut last = certificate.next(&shim).await?.serial()?;
    // The files' anchors come before those of the answer.
    let mut served = roots.next(&shim).await?.trusted_ca_pem;
    while count(&served) < ROOTS + 1 {
        served = roots.next(&shim).await?.trusted_ca_pem;
    }
    assert_eq!(count(&served), ROOTS + 1);
    for _ in 0..3 {
        renew(&shim)?;
        let next = certificate.next(&shim).await?.serial()?;
        assert_ne!(next, last);
        last = next;
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = SdsClient::connect(shim.socket()).await.or_fail("connect")?;
        for name in ["ROOTCA", "default"] {
            Open::new(&client, name).next(&shim).await?;
        }
        clients.push(client);
    }
    let log = shim.log().lines();
    assert!(!log.iter().any(|line| line.contains("room") || line.contains("skipped")), "{log:#?}");
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("the shim lives")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).expect("the kernel tells it");
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    for path in ["/readyz", "/status", "/metrics"] {
        let answer = shim.admin(path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        if let Some(used) = answer.text().lines().find(|line| line.contains("arena_used")) {
            println!("{used}");
        }
    }
    Ok(shim)
}

#[tokio::test]
async fn as_trust_for_the_ca_and_in_rootca() -> testkit::Result {
    let scene = Site::new().await?;
    let bundle = [roots(ROOTS), vec![scene.ca.root_pem()]].concat().concat();
    assert!((BYTES - BYTES / 10..BYTES + BYTES / 10).contains(&bundle.len()), "{} bytes", bundle.len());
    scene.write_root(&bundle)?;
    serves_all(&scene, |shim| shim).await?;
    let check = check(&scene, |shim| shim).await?;
    assert!(check.contains("401 trust anchors") && !check.contains("ERROR"), "{check}");
    Ok(())
}

#[tokio::test]
async fn as_extra_roots() -> testkit::Result {
    let scene = Site::new().await?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &roots(ROOTS).concat())?;
    serves_all(&scene, |shim| shim.env("SDS_SHIM_EXTRA_ROOTS", extra.display().to_string())).await?;
    Ok(())
}

#[tokio::test]
async fn from_the_ca() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_extra_roots(roots(ROOTS));
    serves_all(&scene, |shim| shim).await?;
    Ok(())
}

#[tokio::test]
async fn envoy_takes_them() -> testkit::Result {
    let scene = Site::new().await?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &roots(ROOTS).concat())?;
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_EXTRA_ROOTS", extra.display().to_string());
    let gate = MtlsServer::start(scene, &["spiffe://cluster.local/ns/foo/sa/peer"], edit).await?;
    let peer = gate.scene.issue("spiffe://cluster.local/ns/foo/sa/peer");
    gate.until("a peer is let in", || gate.lets_in(&peer)).await
}

/// With the names of all of them, none of Envoy's requests for a certificate could be written.
#[tokio::test]
async fn envoy_gets_no_more_names_than_tls_has_room_for() -> testkit::Result {
    const TOLD: &str = "Envoy lists the names of all anchors";
    let scene = Site::new().await?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &with_long_names(ROOTS)?.concat())?;
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_EXTRA_ROOTS", extra.display().to_string());
    let said = check(&scene, edit).await?;
    assert!(said.contains("trust anchors of all files would be left out") && said.contains(TOLD), "{said}");
    let gate = MtlsServer::start(scene, &["spiffe://cluster.local/ns/foo/sa/peer"], edit).await?;
    let told = gate.shim.wait_for_log(TOLD).await?;
    assert!(told.contains(" WARN ") && told.contains("trust anchors are left out"), "{told}");
    let peer = gate.scene.issue("spiffe://cluster.local/ns/foo/sa/peer");
    gate.until("a peer is let in", || gate.lets_in(&peer)).await
}

/// What `sds-shim check` says.
async fn check(scene: &Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<String, Failure> {
    let mut check = edit(scene.shim()).arg("check").start()?;
    check.wait_exit().await?;
    Ok(check.log().lines().join("\n"))
}

#[tokio::test]
async fn oversized_bundles_are_reported_with_limit_and_remedy() -> testkit::Result {
    const REMEDY: &str = "raise SDS_SHIM_ARENA_KIB";
    let scene = Site::new().await?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &roots(3 * ROOTS).concat())?;
    let with = |shim: ShimBuilder| shim.env("SDS_SHIM_EXTRA_ROOTS", extra.display().to_string());
    let mut shim = with(scene.shim().confined(Confinement::default())).start()?;
    let mut certificate = Open::connect(&mut shim, "default").await?;
    certificate.next(&shim).await?;
    let line = shim.wait_for_log("does not fit").await?;
    assert!(line.contains(REMEDY), "{line}");
    let served = Open::connect(&mut shim, "ROOTCA").await?.next(&shim).await?.trusted_ca_pem;
    assert!((ROOTS..2 * ROOTS).contains(&count(&served)), "{} are served", count(&served));
    renew(&shim)?;
    certificate.next(&shim).await?;
    let told = check(&scene, with).await?;
    assert!(told.contains("ERROR") && told.contains(REMEDY), "{told}");
    // What helps.
    let large = |shim: ShimBuilder| with(shim).env("SDS_SHIM_ARENA_KIB", "8192");
    let told = check(&scene, large).await?;
    assert!(!told.contains("ERROR"), "{told}");
    drop(certificate);
    shim.signal(Signal::SIGTERM)?;
    shim.wait_exit().await?;
    let mut shim = large(scene.shim()).start()?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    while count(&roots.next(&shim).await?.trusted_ca_pem) < 3 * ROOTS + 1 {}
    Ok(())
}

/// Mozilla's, where this system has them.
#[tokio::test]
async fn the_roots_of_this_system() -> testkit::Result {
    const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
    let Ok(bundle) = fs::read_to_string(SYSTEM) else { return Ok(()) };
    let scene = Site::new().await?;
    scene.write_root(&(bundle.clone() + &scene.ca.root_pem()))?;
    let mut shim = scene.shim().confined(Confinement::default()).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let served = Open::connect(&mut shim, "ROOTCA").await?.next(&shim).await?.trusted_ca_pem;
    // Some may have expired since this system was made.
    assert!(count(&served) + 5 > count(&bundle), "{} of {}", count(&served), count(&bundle));
    Ok(())
}
