//! Mounted files in bad days: closed to us, changed where the kernel tells nobody, half written while the CA comes; and
//! what else is done with them: written elsewhere, read again when somebody asks.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    confined::{Confinement, UID, own},
    development_ca::{Fault, Issued, Pki},
    fixture::{Open, Site, renew, write},
    mount::{self, ISTIO, Mount, Served, issue, serial},
    shim::ShimBuilder,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

/// The kernel tells of a change at once: a limit for loaded machines only.
const SOON: Duration = Duration::from_secs(5);

fn mounted(shim: ShimBuilder) -> ShimBuilder {
    shim.env("FILE_MOUNTED_CERTS", "true")
}

fn chmod(path: &Path, mode: u32) -> testkit::Result {
    fs::set_permissions(path, Permissions::from_mode(mode)).or_fail("change a mode")
}

/// As the user of a sidecar, who cannot read what has the mode 0000.
#[tokio::test]
async fn an_unreadable_key_is_named_and_read_once_it_can_be() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let key = mount.volume.dir().join("key.pem");
    chmod(&key, 0)?;
    write(&scene.workload.path().join("other.pem"), &Pki::new("other").root_pem())?;
    // Only the kernel can tell of the change.
    let edit = |shim| mounted(shim).env("SDS_SHIM_FILE_CHECK", "0s").confined(Confinement::default());
    let mut served = Served::start(scene, edit).await?;
    let told = "key.pem: Permission denied (os error 13) (owner 1337:1337, mode 0000; running as 1337:1337): \
                grant this user access, in Kubernetes with fsGroup or the volume's defaultMode; Envoy waits";
    served.shim.wait_for_log(told).await?;
    let reason = served.shim.admin("/readyz").await?;
    assert!(reason.status == 503 && reason.text().contains("key.pem: Permission denied"), "{}", reason.text());
    // Everything else is served.
    assert_eq!(served.anchors().await?, mount.pki.root_pem());
    let mut other = Open::connect(&mut served.shim, "file-root:./other.pem").await?;
    other.next(&served.shim).await?;
    served.default.expect_silence(&served.shim).await?;

    let since = Instant::now();
    chmod(&key, 0o640)?;
    let first = served.certificate().await?.serial()?;
    println!("served {:?} after it was opened", since.elapsed());
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    // Closed again, what was read is served on, and a generation that is open follows.
    let mark = served.shim.log().mark();
    chmod(&key, 0)?;
    served.shim.wait_for_log_after(mark, "running as 1337:1337").await?;
    served.quiet().await?;
    let next = mount.rotate()?;
    own(mount.volume.dir(), UID, UID).or_fail("give it to the user of the shim")?;
    assert_ne!(next, first);
    assert_eq!(served.certificate().await?.serial()?, next);
    Ok(())
}

#[tokio::test]
async fn an_inaccessible_directory_is_reported_and_read_once_accessible() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let directory = mount.volume.dir().to_owned();
    chmod(&directory, 0)?;
    let edit = |shim| mounted(shim).env("SDS_SHIM_FILE_CHECK", "0s").confined(Confinement::default());
    let mut served = Served::start(scene, edit).await?;
    served
        .shim
        .wait_for_log("a directory on its path is not accessible; running as 1337:1337): grant this user access")
        .await?;
    chmod(&directory, 0o755)?;
    served.certificate().await?;
    assert_eq!(served.anchors().await?, mount.pki.root_pem());
    Ok(())
}

/// How often a process was scheduled, of its own will or not.
fn wakeups(pid: u32) -> Result<u64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).or_fail("read the status")?;
    let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
    Ok(lines.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok()).sum())
}

#[tokio::test]
async fn files_that_are_missing_cost_no_processor_time() -> testkit::Result {
    const WHILE: Duration = Duration::from_secs(10);
    let scene = Site::new().await?;
    let edit = |shim: ShimBuilder| {
        let shim = shim.env("SDS_SHIM_SOURCE", "files").env("SDS_SHIM_FILE_CHECK", "0s");
        let shim = shim.env("SDS_SHIM_EXTRA_ROOTS", "./no/roots.pem").env("SDS_SHIM_CRL", "./no/crl.pem");
        shim.env("SDS_SHIM_TRUST_DOMAIN_FILE", "./no/trust-domain")
    };
    let mut served = Served::start(scene, edit).await?;
    let _names = Open::connect(&mut served.shim, "file-cert:./no/chain.pem~./no/key.pem").await?;
    for told in ["cert-chain.pem: No such file", "./no/roots.pem: No such file", "./no/chain.pem: No such file"] {
        served.shim.wait_for_log(told).await?;
    }
    served.quiet().await?;
    let before = wakeups(served.shim.pid())?;
    sleep(WHILE).await;
    assert_eq!(wakeups(served.shim.pid())?, before, "it woke up");
    Ok(())
}

#[tokio::test]
async fn activity_in_parent_directories_costs_no_cpu() -> testkit::Result {
    const WHILE: Duration = Duration::from_secs(1);
    let scene = Site::new().await?;
    let passed = scene.workload.path().join("etc");
    // It is the end of the way as long as the mount is missing.
    fs::create_dir(&passed).or_fail("make a directory")?;
    let edit = |shim| mounted(shim).env("SDS_SHIM_SOURCE", "files").env("SDS_SHIM_FILE_CHECK", "0s");
    let mut served = Served::start(scene, edit).await?;
    served.shim.wait_for_log("cert-chain.pem: No such file").await?;
    let mount = Mount::new(&served.scene, "./etc/certs", ISTIO)?;
    served.certificate().await?;
    served.anchors().await?;
    let (mut before, deadline) = (0, Instant::now() + PATIENCE);
    while wakeups(served.shim.pid())? != before {
        assert!(Instant::now() < deadline, "it does not come to rest");
        before = wakeups(served.shim.pid())?;
        sleep(WHILE).await;
    }
    for number in 0..20 {
        write(&passed.join(number.to_string()), "of others")?;
    }
    sleep(WHILE).await;
    assert_eq!(wakeups(served.shim.pid())?, before, "it woke up");
    // And it sees what concerns it.
    let serial = mount.rotate()?;
    assert_eq!(served.certificate().await?.serial()?, serial);
    let mark = served.shim.log().mark();
    fs::rename(&passed, passed.with_extension("old")).or_fail("move it away")?;
    served.shim.wait_for_log_after(mark, "cert-chain.pem: No such file").await?;
    let next = Mount::new(&served.scene, "./etc/certs", ISTIO)?;
    assert_eq!(served.anchors().await?.matches("BEGIN").count(), 2);
    served.certificate().await?;
    let serial = next.rotate()?;
    assert_eq!(served.certificate().await?.serial()?, serial);
    Ok(())
}

/// A shim in a mount namespace of its own, which serves a credential bundle.
struct Apart {
    served: Served,
    pki: Pki,
    bundle: PathBuf,
    anchors: PathBuf,
}

impl Apart {
    async fn start(check: &str) -> Result<Self, Failure> {
        let scene = Site::new().await?;
        let path = scene.workload.path();
        let (bundle, anchors, pki) = (path.join("bundle.pem"), path.join("anchors.pem"), Pki::new("one"));
        let Issued { chain_pem, key_pem } = issue(&pki);
        write(&bundle, &format!("{key_pem}{chain_pem}"))?;
        write(&anchors, &pki.root_pem())?;
        fs::create_dir(path.join("fresh")).or_fail("make a directory")?;
        let edit = |shim: ShimBuilder| {
            let shim = shim.env("SDS_SHIM_CREDENTIAL_BUNDLE", "./bundle.pem");
            let shim = shim.env("SDS_SHIM_TRUST_ANCHORS", "./anchors.pem").env("SDS_SHIM_FILE_CHECK", check);
            shim.through(&["unshare", "--mount"])
        };
        let mut served = Served::start(scene, edit).await?;
        served.certificate().await?;
        served.anchors().await?;
        Ok(Self { served, pki, bundle, anchors })
    }

    /// Puts a file over another one where the shim is, of which inotify tells nobody.
    fn cover(&self, path: &Path, content: &str) -> testkit::Result {
        // Not beside it, where inotify would tell of that.
        let directory = self.served.scene.workload.path().join("fresh");
        let number = fs::read_dir(&directory).or_fail("list the directory")?.count();
        let fresh = directory.join(number.to_string());
        write(&fresh, content)?;
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.served.shim.pid());
        let mut command = Command::new("nsenter");
        let status =
            command.args([&namespace, "mount", "--bind"]).args([&fresh, path]).status().or_fail("run nsenter")?;
        assert!(status.success(), "{status}");
        Ok(())
    }

    /// Another certificate; its serial number.
    fn renew(&self) -> Result<String, Failure> {
        let Issued { chain_pem, key_pem } = issue(&self.pki);
        self.cover(&self.bundle, &format!("{key_pem}{chain_pem}"))?;
        serial(&chain_pem)
    }

    /// What `sds-shim renew` prints, and its exit code.
    async fn ask(&self) -> Result<(i32, String), Failure> {
        let mut command = self.served.scene.shim().arg("renew").start()?;
        let code = command.wait_exit().await?.code();
        Ok((code.ok_or_else(|| command.failure("it was ended by a signal"))?, command.log().lines().join("\n")))
    }
}

#[tokio::test]
async fn changes_without_events_are_found_by_polling() -> testkit::Result {
    let mut apart = Apart::start("1s").await?;
    let serial = apart.renew()?;
    assert_eq!(apart.served.certificate().await?.serial()?, serial);
    let more = Pki::new("two").root_pem();
    apart.cover(&apart.anchors, &format!("{}{more}", apart.pki.root_pem()))?;
    assert_eq!(apart.served.anchors().await?, apart.pki.root_pem() + &more);
    apart.served.quiet().await
}

#[tokio::test]
async fn without_looking_it_is_found_when_somebody_asks() -> testkit::Result {
    let mut apart = Apart::start("0s").await?;
    let (code, told) = apart.ask().await?;
    let nothing_new = "the mounted files ./bundle.pem and ./bundle.pem hold the certificate that is already served";
    assert!(code == 0 && told.contains(nothing_new), "{code}: {told}");
    apart.served.quiet().await?;

    let serial = apart.renew()?;
    apart.served.quiet().await?;
    let (code, told) = apart.ask().await?;
    assert!(code == 0 && told.contains("were re-read, and their new certificate is served"), "{code}: {told}");
    assert_eq!(apart.served.certificate().await?.serial()?, serial);

    // New anchors come first, and a signal is enough.
    let next = Pki::new("two");
    let Issued { chain_pem, key_pem } = issue(&next);
    apart.cover(&apart.anchors, &next.root_pem())?;
    apart.cover(&apart.bundle, &format!("{key_pem}{chain_pem}"))?;
    renew(&apart.served.shim)?;
    let anchors = apart.served.anchors().await?;
    assert!(anchors.starts_with(&next.root_pem()), "{anchors}");
    assert_eq!(apart.served.certificate().await?.serial()?, mount::serial(&chain_pem)?);

    for _ in 0..2 {
        apart.cover(&apart.bundle, "nothing of use")?;
        let (code, told) = apart.ask().await?;
        assert!(
            code != 0 && told.contains("bundle.pem: ") && told.contains("still serving the current certificate"),
            "{code}: {told}"
        );
    }
    assert_eq!(apart.served.scene.ca.connections(), 0);
    apart.served.quiet().await
}

#[tokio::test]
async fn the_mounted_certificate_is_written_to_output_certs_as_well() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let output = scene.workload.path().join("output");
    let written = output.display().to_string();
    let mut served = Served::start(scene, |shim| mounted(shim).env("OUTPUT_CERTS", written)).await?;
    served.certificate().await?;
    let mut last = String::new();
    for _ in 0..3 {
        let serial = mount.rotate()?;
        assert_eq!(served.certificate().await?.serial()?, serial);
        let deadline = Instant::now() + PATIENCE;
        while fs::read_to_string(output.join("cert-chain.pem")).ok().and_then(|text| mount::serial(&text).ok())
            != Some(serial.clone())
        {
            assert!(Instant::now() < deadline, "{serial} is not written");
            sleep(POLL).await;
        }
        last = serial;
    }
    assert_eq!(fs::read_to_string(output.join("root-cert.pem")).or_fail("the roots")?, mount.pki.root_pem());
    // What is gone from the mount stays there.
    fs::remove_dir_all(mount.volume.dir()).or_fail("remove the mount")?;
    served.shim.wait_for_log("cert-chain.pem: No such file").await?;
    let chain = fs::read_to_string(output.join("cert-chain.pem")).or_fail("the chain")?;
    assert_eq!(serial(&chain)?, last);
    Ok(())
}

/// The mount goes on to rotate, also to another root and by halves, until the CA has issued in the middle of it.
#[tokio::test]
async fn auto_mode_follows_a_rotating_mount_until_the_ca_issues() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for the test".to_owned())));
    let mut served = Served::start(scene, |shim| mounted(shim).env("SDS_SHIM_SOURCE", "auto")).await?;
    served.certificate().await?;
    served.anchors().await?;
    let next = Pki::new("next");
    let serial = mount.write(&next, &next.root_pem())?;
    let anchors = served.anchors().await?;
    let of = [&next, &mount.pki, &served.scene.pki].map(Pki::root_pem);
    assert!(of.iter().all(|root| anchors.contains(root.as_str())), "{anchors}");
    assert_eq!(served.certificate().await?.serial()?, serial);
    // Half of a generation: its chain, with the key of the one before.
    let (one, other) = (issue(&next), issue(&next));
    let files = |chain: &str, key: &str| {
        let files = [("cert-chain.pem", chain), ("key.pem", key), ("root-cert.pem", of[0].as_str())];
        mount.volume.replace(&files).or_fail("write the volume")
    };
    files(&one.chain_pem, &other.key_pem)?;
    served.shim.wait_for_log("does not belong to the certificate; still serving the previous one").await?;
    served.scene.ca.set_fault(None);
    renew(&served.shim)?;
    let issued = served.certificate().await?.serial()?;
    assert_eq!(served.scene.issued(), [issued]);
    files(&one.chain_pem, &one.key_pem)?;
    served.quiet().await?;
    assert!(served.source().await?.starts_with("the CA"));
    Ok(())
}

/// Whether a process has the kernel watch this file.
fn watches(pid: u32, file: &Path) -> Result<bool, Failure> {
    let inode = format!(" ino:{:x} ", fs::metadata(file).or_fail("look at a file")?.ino());
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).or_fail("list the descriptors")?.flatten();
    let mut told = descriptors.filter_map(|file| fs::read_to_string(file.path()).ok());
    Ok(told.any(|text| text.lines().any(|line| line.starts_with("inotify ") && line.contains(&inode))))
}

#[tokio::test]
async fn once_the_ca_has_issued_the_mount_is_ignored() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for the test".to_owned())));
    let edit = |shim| mounted(shim).env("SDS_SHIM_SOURCE", "auto").env("SDS_SHIM_FILE_CHECK", "0s");
    let mut served = Served::start(scene, edit).await?;
    served.certificate().await?;
    served.anchors().await?;
    let chain = mount.volume.dir().join("cert-chain.pem");
    assert!(watches(served.shim.pid(), &chain)?);
    // It tries again by itself, and nothing has the files read meanwhile.
    served.scene.ca.set_fault(None);
    served.certificate().await?;
    write(&chain, "nothing of use")?;
    let deadline = Instant::now() + SOON;
    while watches(served.shim.pid(), &chain)? {
        assert!(Instant::now() < deadline, "the file is still watched: {:#?}", served.shim.log().lines());
        sleep(POLL).await;
    }
    // Nor does it matter to who asks for another one.
    renew(&served.shim)?;
    served.certificate().await?;
    let status = served.status().await?;
    assert!(status["workloads"][0]["trouble"].is_null(), "{status:#}");
    for told in ["cannot use the mounted certificate: ", "re-reading the mounted files"] {
        assert_eq!(served.shim.log().count(told), 0, "{told}");
    }
    Ok(())
}
