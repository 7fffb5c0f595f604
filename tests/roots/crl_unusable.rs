//! A list of revoked certificates that is there and cannot be used: nobody gets trust anchors without it, and everybody
//! is told why. Or what is served stays, until the list can be used.

use std::fs;

use openssl::x509::X509Crl;
use testkit::{
    Failure, OrFail,
    development_ca::{CrlOptions, Issued, Lifetime, Pki},
    fixture::Site,
    mtls_server::{MtlsServer, PEER, peer},
    shim::ShimBuilder,
};

/// In one step, so that nobody reads a half.
fn put(scene: &Site, content: impl AsRef<[u8]>) -> testkit::Result {
    let file = scene.lists()?;
    fs::write(file.with_extension("new"), content).or_fail("write the list")?;
    fs::rename(file.with_extension("new"), &file).or_fail("replace the list")
}

fn der(pem: &str) -> Vec<u8> {
    X509Crl::from_pem(pem.as_bytes()).and_then(|list| list.to_der()).expect("a list")
}

/// Lists of many entries; `bytes` is about what they take.
fn large(pki: &Pki, revoked: &Issued, bytes: usize) -> String {
    // One certificate takes about 50 characters.
    let other = peer(pki);
    let many: Vec<_> = std::iter::repeat_n(&other, bytes / 50).chain([revoked]).collect();
    pki.crl(&many, 600)
}

/// What is told at every place where somebody may look.
async fn told(gate: &mut MtlsServer, what: &str) -> testkit::Result {
    let ready = gate.shim.admin("/readyz").await?;
    assert!(ready.text().contains(what), "{}", ready.text());
    let status = gate.shim.admin("/status").await?.text();
    assert!(status.contains("\"revocation\":{") && status.contains(what), "{status}");
    let metrics = gate.shim.admin("/metrics").await?.text();
    let usable = metrics.lines().find(|line| line.starts_with("sds_shim_revocation_usable{")).unwrap_or_default();
    assert!(usable.ends_with(" 0") && !usable.contains("reason=\"\""), "{metrics}");
    let rendered = output(gate, &["status", "--table"]).await?;
    assert!(rendered.lines().any(|line| line.starts_with("CRL ") && line.contains(what)), "{rendered}");
    Ok(())
}

/// What `sds-shim check` or another command prints in the place of the workload.
async fn output(gate: &MtlsServer, arguments: &[&str]) -> Result<String, Failure> {
    let shim = arguments.iter().fold(gate.scene.shim(), |shim, argument| shim.arg(*argument));
    let mut command = shim.start()?;
    command.wait_exit().await?;
    Ok(command.log().lines().join("\n"))
}

type Content = fn(&Pki, &Issued) -> Vec<u8>;

fn like(pki: &Pki, revoked: &Issued, options: CrlOptions<'_>) -> Vec<u8> {
    pki.crl_with(&[revoked], &options).into_bytes()
}

/// What is no list to be used, and what is told of it.
const UNUSABLE: [(&str, Content, &str); 9] = [
    ("no list in it", |_, _| b"# none yet\n".to_vec(), "it holds no PEM CRL"),
    ("cut off", |pki, revoked| pki.crl(&[revoked], 600).into_bytes()[..200].to_vec(), "CRL 1 is cut off"),
    (
        "one odd entry",
        |pki, revoked| pki.crl(&[revoked], 600).repeat(2).replacen("\nM", "\nAAAAM", 2).into(),
        "cannot be parsed",
    ),
    ("cut DER", |pki, revoked| der(&pki.crl(&[revoked], 600))[..200].to_vec(), "it is neither a DER CRL nor PEM"),
    ("UTF-16", |pki, _| pki.crl(&[], 600).encode_utf16().flat_map(u16::to_le_bytes).collect(), "it holds no PEM CRL"),
    ("delta", |pki, revoked| like(pki, revoked, CrlOptions { extensions: DELTA, ..fresh() }), "is a delta CRL"),
    (
        "signature",
        |pki, revoked| like(pki, revoked, CrlOptions { foreign_key: true, ..fresh() }),
        "has a wrong signature",
    ),
    ("ahead", |pki, revoked| like(pki, revoked, CrlOptions { life: AHEAD, ..fresh() }), "begins at "),
    ("too large", |pki, revoked| large(pki, revoked, 1 << 20).into_bytes(), "SDS_SHIM_ARENA_KIB="),
];
const DELTA: &[(&str, bool, &[u8])] = &[("2.5.29.27", true, &[2, 1, 1])];
const AHEAD: Lifetime = Lifetime { not_before: 3000, not_after: 3600 };

fn fresh() -> CrlOptions<'static> {
    CrlOptions::fresh_for(600)
}

#[tokio::test]
async fn no_peer_is_admitted_before_the_list_is_usable() -> testkit::Result {
    for (name, content, what) in UNUSABLE {
        println!("{name}");
        let scene = Site::new().await?;
        let (revoked, other) = (peer(&scene.pki), peer(&scene.pki));
        let list = der(&scene.pki.crl(&[&revoked], 600));
        put(&scene, content(&scene.pki, &revoked))?;
        let mut gate = MtlsServer::begin(scene, &[PEER], |shim| shim).await?;
        gate.shim.wait_for_log(what).await?;
        gate.shim.wait_for_log("certificate issued").await?;
        assert_eq!(gate.shim.admin("/readyz").await?.status, 503, "{name}");
        told(&mut gate, what).await?;
        if name != "signature" {
            let check = output(&gate, &["check"]).await?;
            assert!(check.lines().any(|line| line.starts_with("  ERROR") && line.contains(what)), "{name}: {check}");
        }
        assert!(!gate.envoy.admin().is_ready().await && !gate.lets_in(&revoked).await?, "{name}");
        // From then on all is well. DER is as good as PEM.
        put(&gate.scene, &list)?;
        gate.ready().await?;
        assert!(gate.lets_in(&other).await? && !gate.lets_in(&revoked).await?, "{name}");
        assert_eq!(gate.shim.admin("/readyz").await?.text(), "ok\n");
        let check = output(&gate, &["check"]).await?;
        assert!(check.contains("1 revocation list"), "{name}: {check}");
    }
    Ok(())
}

#[tokio::test]
async fn with_fail_open_peers_are_let_in_without_it() -> testkit::Result {
    let scene = Site::new().await?;
    put(&scene, "nonsense")?;
    let mut gate = MtlsServer::start(scene, &[PEER], |shim| shim.env("SDS_SHIM_CRL_FAIL_OPEN", "true")).await?;
    assert!(gate.lets_in(&peer(&gate.scene.pki)).await?);
    assert_eq!(gate.shim.admin("/readyz").await?.status, 200);
    told(&mut gate, "it holds no PEM CRL").await
}

#[tokio::test]
async fn a_file_that_is_configured_must_be_there() -> testkit::Result {
    let scene = Site::new().await?;
    let mut gate = MtlsServer::begin(scene, &[PEER], |shim| shim.env("SDS_SHIM_CRL", "./lists.pem")).await?;
    gate.shim.wait_for_log("certificate issued").await?;
    told(&mut gate, "./lists.pem: No such file").await?;
    assert_eq!(gate.shim.admin("/readyz").await?.status, 503);
    let list = gate.scene.pki.crl(&[], 600);
    testkit::fixture::write(&gate.scene.workload.path().join("lists.pem"), &list)?;
    gate.ready().await?;
    assert!(gate.lets_in(&peer(&gate.scene.pki)).await?);
    Ok(())
}

/// Whoever breaks the file later takes nobody out of service, and lets nobody in.
#[tokio::test]
async fn the_last_good_lists_stay_and_the_reason_is_reported() -> testkit::Result {
    let scene = Site::new().await?;
    let revoked = peer(&scene.pki);
    put(&scene, scene.pki.crl(&[&revoked], 600))?;
    let mut gate = MtlsServer::start(scene, &[PEER], |shim| shim).await?;
    assert!(!gate.lets_in(&revoked).await?);
    let delta = gate.scene.pki.crl_with(&[], &CrlOptions { extensions: DELTA, ..fresh() });
    for (content, what) in [("nonsense".to_owned(), "it holds no PEM CRL"), (delta, "is a delta CRL")] {
        put(&gate.scene, content)?;
        gate.shim.wait_for_log(what).await?;
        told(&mut gate, what).await?;
        assert_eq!(gate.shim.admin("/readyz").await?.status, 200);
        assert!(!gate.lets_in(&revoked).await? && gate.lets_in(&peer(&gate.scene.pki)).await?, "{what}");
    }
    put(&gate.scene, gate.scene.pki.crl(&[], 600))?;
    gate.until("it is let in", || gate.lets_in(&revoked)).await?;
    assert_eq!(gate.shim.admin("/readyz").await?.text(), "ok\n");
    Ok(())
}

/// What the message asks for is enough: a list of 1 MiB is served, and replaced by another one.
#[tokio::test]
async fn a_list_of_a_mebibyte_is_served_with_the_arena_that_the_log_names() -> testkit::Result {
    let scene = Site::new().await?;
    let (revoked, later) = (peer(&scene.pki), peer(&scene.pki));
    put(&scene, large(&scene.pki, &revoked, 1 << 20))?;
    let mut small = scene.shim().start()?;
    small.connect().await?;
    let line = small.wait_for_log("SDS_SHIM_ARENA_KIB=").await?;
    let (_, kib) = line.split_once("SDS_SHIM_ARENA_KIB=").unwrap_or_default();
    let kib: String = kib.chars().take_while(char::is_ascii_digit).collect();
    println!("{kib} KiB");
    drop(small);
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_ARENA_KIB", &kib);
    let gate = MtlsServer::start(scene, &[PEER], edit).await?;
    assert!(!gate.lets_in(&revoked).await? && gate.lets_in(&later).await?);
    put(&gate.scene, large(&gate.scene.pki, &later, 1 << 20))?;
    gate.until("the other one is refused", || async { Ok(!gate.lets_in(&later).await?) }).await?;
    assert!(gate.lets_in(&revoked).await?);
    Ok(())
}
