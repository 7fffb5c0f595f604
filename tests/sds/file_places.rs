//! Files of which the kernel tells nothing: on file systems that others change, and mounted by themselves. A bind mount
//! over a file is a change that inotify tells nobody, so these tests need root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{
    Failure, OrFail,
    development_ca::{Pki, TokenRequest},
    fixture::{Open, Site, token, tokens, write},
    sds::Secret,
    shim::{Shim, ShimBuilder},
};

const FRESH: &str = "fresh";

/// A shim in a mount namespace of its own, which looks at its files every second.
fn apart(scene: &Site) -> Result<ShimBuilder, Failure> {
    // Where the files are that cover others: made before anybody watches what it is in.
    fs::create_dir_all(scene.workload.path().join(FRESH)).or_fail("make a directory")?;
    Ok(scene.shim().env("SDS_SHIM_FILE_CHECK", "1s").through(&["unshare", "--mount"]))
}

/// Puts a file over another one where the shim is.
fn cover(scene: &Site, shim: &Shim, path: &Path, content: &str) -> testkit::Result {
    // Not beside it, where inotify would tell of that.
    let fresh = scene.workload.path().join(FRESH).join("file");
    write(&fresh, content)?;
    let namespace = format!("--mount=/proc/{}/ns/mnt", shim.pid());
    let mut command = Command::new("nsenter");
    let status = command.args([&namespace, "mount", "--bind"]).args([&fresh, path]).status().or_fail("run nsenter")?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("nsenter: {status}"))) }
}

/// A file of the workload with this content.
fn file(scene: &Site, name: &str, content: &str) -> Result<PathBuf, Failure> {
    let path = scene.workload.path().join(name);
    write(&path, content)?;
    Ok(path)
}

/// Waits for anchors that `hold`.
async fn roots(stream: &mut Open, shim: &Shim, hold: impl Fn(&Secret) -> bool) -> testkit::Result {
    while !hold(&stream.next(shim).await?) {}
    Ok(())
}

#[tokio::test]
async fn named_trust_anchors_are_followed_with_a_ca() -> testkit::Result {
    let scene = Site::new().await?;
    let (one, two) = (Pki::new("one").root_pem(), Pki::new("two").root_pem());
    let path = file(&scene, "extra.pem", &one)?;
    let mut shim = apart(&scene)?.env("SDS_SHIM_EXTRA_ROOTS", "./extra.pem").start()?;
    let mut stream = Open::connect(&mut shim, "ROOTCA").await?;
    roots(&mut stream, &shim, |secret| secret.trusted_ca_pem.contains(&one)).await?;
    cover(&scene, &shim, &path, &two)?;
    roots(&mut stream, &shim, |secret| secret.trusted_ca_pem.contains(&two)).await
}

#[tokio::test]
async fn named_revocation_lists_are_followed_with_a_ca() -> testkit::Result {
    let scene = Site::new().await?;
    let revoked = scene.issue("spiffe://cluster.local/ns/foo/sa/revoked");
    let (one, two) = (scene.pki.crl(&[], 3600), scene.pki.crl(&[&revoked], 3600));
    let path = file(&scene, "crl.pem", &one)?;
    let mut shim = apart(&scene)?.env("SDS_SHIM_CRL", "./crl.pem").start()?;
    let mut stream = Open::connect(&mut shim, "ROOTCA").await?;
    let mut before = String::new();
    while before.is_empty() {
        before = stream.next(&shim).await?.crl_pem;
    }
    cover(&scene, &shim, &path, &two)?;
    roots(&mut stream, &shim, |secret| !secret.crl_pem.is_empty() && secret.crl_pem != before).await
}

#[tokio::test]
async fn the_trust_domain_file_is_followed_with_a_ca() -> testkit::Result {
    let scene = Site::new().await?;
    let path = file(&scene, "trust-domain", "cluster.local")?;
    let mut shim = apart(&scene)?.env("SDS_SHIM_TRUST_DOMAIN_FILE", "./trust-domain").start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    cover(&scene, &shim, &path, "new.example")?;
    shim.wait_for_log("trust domain changed to new.example (was cluster.local)").await?;
    Ok(())
}

#[tokio::test]
async fn the_token_is_followed() -> testkit::Result {
    let mut scene = Site::new().await?;
    let expired = TokenRequest { not_before: -7200, lifetime: -3600, ..TokenRequest::new("foo", "sleep") };
    scene.write_token(&tokens().mint(&expired))?;
    let mut shim = apart(&scene)?.start()?;
    shim.wait_for_log("the token expired").await?;
    let path = fs::canonicalize(scene.workload.token_file()).or_fail("find the token")?;
    cover(&scene, &shim, &path, &token())?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_system_that_tells_of_no_changes_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    // procfs is one that is everywhere.
    let script = "mount --make-rprivate / && echo cluster.local > /proc/sys/kernel/hostname && exec \"$0\" \"$@\"";
    let shim = scene.shim().env("SDS_SHIM_TRUST_DOMAIN_FILE", "/proc/sys/kernel/hostname");
    let shim = shim.through(&["unshare", "--mount", "--uts", "sh", "-c", script]);
    let running = shim.clone().start()?;
    let line = running.wait_for_log("which does not report changes").await?;
    assert!(line.contains("procfs") && line.contains("checking the file every 30 s"), "{line}");
    assert!(line.contains("/proc/sys/kernel/hostname"), "{line}");
    assert_eq!(running.log().count("which does not report changes"), 1, "the others lie where changes are told");
    let mut check = shim.arg("check").start()?;
    check.wait_exit().await?;
    let told = check.log().lines().join("\n");
    assert!(told.contains("/proc/sys/kernel/hostname: it is on procfs"), "{told}");
    assert_eq!(told.matches("it is on").count(), 1, "{told}");
    Ok(())
}

/// As with a volume's subPath.
#[tokio::test]
async fn a_file_that_is_mounted_by_itself_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    file(&scene, "extra.pem", &Pki::new("one").root_pem())?;
    file(&scene, "source.pem", &Pki::new("one").root_pem())?;
    let script = "mount --bind source.pem extra.pem && exec \"$0\" \"$@\"";
    let shim = scene.shim().env("SDS_SHIM_EXTRA_ROOTS", "./extra.pem");
    let shim = shim.through(&["unshare", "--mount", "sh", "-c", script]);
    let running = shim.clone().start()?;
    let line = running.wait_for_log("subPath").await?;
    assert!(line.contains("./extra.pem") && line.contains("mount the volume's directory instead"), "{line}");
    let mut check = shim.arg("check").start()?;
    check.wait_exit().await?;
    let told = check.log().lines().join("\n");
    assert!(told.contains("./extra.pem: it is mounted by itself"), "{told}");
    assert_eq!(told.matches("it is mounted by itself").count(), 1, "{told}");
    Ok(())
}
