//! Files that are asked for by name, and who may have them: users beside the shim's own could have it read for them what
//! they cannot read themselves. These tests start the shim as another user, so they need root, who is the other user.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use testkit::{
    Failure, OrFail,
    confined::{Confinement, UID, own},
    development_ca::{Leaf, Pki, ProjectedVolume},
    fixture::{Pod, QUIET, Site, names, secret},
    process::Process,
    sds,
};
use tonic::Code;

const REFUSED: &str = "requested by uid 0, which may name only files below SDS_SHIM_FILE_DIRECTORIES";

/// What the tests ask for: a key of the shim's user, and files in a directory that is open to others.
struct Files {
    private: PathBuf,
    open: PathBuf,
}

/// Key and chain in one file.
fn bundle() -> String {
    let issued = Pki::new("files").issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
    issued.key_pem + &issued.chain_pem
}

/// A pod whose shim is of UID 1337, and lets us in.
async fn pod(open: bool) -> Result<(Pod, Files), Failure> {
    let site = Site::new().await?;
    let files = Files { private: site.workload.path().join("private.pem"), open: site.workload.path().join("open") };
    fs::write(&files.private, bundle()).or_fail("write the key")?;
    fs::set_permissions(&files.private, fs::Permissions::from_mode(0o400)).or_fail("close it")?;
    fs::create_dir(&files.open).or_fail("make the directory")?;
    fs::write(files.open.join("bundle.pem"), bundle()).or_fail("write the bundle")?;
    symlink(&files.private, files.open.join("out.pem")).or_fail("make a link")?;
    symlink("bundle.pem", files.open.join("in.pem")).or_fail("make a link")?;
    let volume = ProjectedVolume::create(&files.open.join("volume"), &[]).or_fail("make a volume")?;
    volume.replace(&[("tls.pem", &bundle())]).or_fail("fill it")?;
    own(site.workload.path(), UID, UID).or_fail("give the pod away")?;
    let shim = site.shim().confined(Confinement::default());
    let shim = match open {
        true => shim.env("SDS_SHIM_FILE_DIRECTORIES", files.open.display().to_string()),
        false => shim.without("SDS_SHIM_FILE_DIRECTORIES"),
    };
    Ok((site.serve_with(shim).await?, files))
}

fn certificate(path: &Path) -> String {
    format!("file-cert:{0}~{0}", path.display())
}

#[tokio::test]
async fn another_user_gets_no_file_that_the_shim_can_read() -> testkit::Result {
    let (mut pod, files) = pod(false).await?;
    let wanted = [certificate(&files.private), format!("file-root:{}", files.private.display())];
    for name in &wanted {
        let mut stream = pod.client.stream();
        stream.send(sds::request(&[name, "default"]));
        let answer = stream.recv().await?;
        assert_eq!(names(&answer)?, ["default"], "the stream is served all else");
        stream.send(sds::ack(&answer, &[name, "default"]));
        stream.expect_silence(QUIET).await?;
        let (metrics, path) = (pod.shim.admin("/metrics").await?.text(), files.private.display());
        let pending = metrics.lines().find(|line| line.starts_with("sds_shim_sds_pending") && line.contains("file-"));
        assert!(
            pending.is_some_and(|line| line.contains(&path.to_string()[..20]) && line.ends_with(" 1")),
            "{metrics}"
        );
        let mut delta = pod.client.delta();
        delta.send(sds::delta_request(&[name], &[]));
        assert_eq!(&delta.recv().await?.removed_resources, std::slice::from_ref(name));
        let fetched = pod.client.fetch(sds::request(&[name])).await;
        assert_eq!(fetched.err().map(|status| status.code()), Some(Code::PermissionDenied));
    }
    assert_eq!(pod.shim.log().count(REFUSED), wanted.len(), "each is told once");
    Ok(())
}

#[tokio::test]
async fn files_requested_by_our_own_user_stay_closed_to_others() -> testkit::Result {
    let (pod, files) = pod(false).await?;
    let name = certificate(&files.private);
    let mut stream = pod.client.stream();
    stream.send(sds::request(&[&name]));
    stream.expect_silence(QUIET).await?;
    // It is held for as long as this one asks, and each look of the store wakes the other.
    let arguments = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "./sds-shim", "get", &name];
    for _ in 0..3 {
        let mut own = Process::start(
            "sds-shim get",
            Path::new("/usr/bin/setpriv"),
            &arguments.map(str::to_owned),
            &[],
            pod.shim.directory(),
        )?;
        assert_eq!(own.wait_exit().await?.code(), Some(0), "{:#?}", own.log().lines());
        assert!(own.log().contains("BEGIN CERTIFICATE"));
    }
    stream.expect_silence(QUIET).await?;
    Ok(())
}

#[tokio::test]
async fn files_below_an_allowed_directory_are_served_and_links_cannot_escape() -> testkit::Result {
    let (pod, files) = pod(true).await?;
    let inside = ["bundle.pem", "in.pem", "volume/tls.pem"].map(|name| files.open.join(name));
    for inside in inside.into_iter().chain([PathBuf::from("./open/bundle.pem")]) {
        let name = certificate(&inside);
        let (_, answer) = pod.ask(&[&name]).await?;
        assert!(secret(&answer, &name)?.key_pem.contains("PRIVATE KEY"), "{name}");
    }
    assert!(pod.ask(&["file-root:system"]).await?.1.resources.len() == 1);
    assert_eq!(pod.shim.log().count(REFUSED), 0);

    let out = certificate(&files.open.join("out.pem"));
    let mut stream = pod.client.stream();
    stream.send(sds::request(&[&out]));
    let line = pod.shim.wait_for_log("a symbolic link leads out of").await?;
    assert!(line.contains("SDS_SHIM_FILE_DIRECTORIES") && line.contains("out.pem"), "{line}");
    stream.expect_silence(QUIET).await?;
    for outside in [files.open.join("../private.pem"), files.private.clone(), PathBuf::from("open/../private.pem")] {
        let name = certificate(&outside);
        let mut stream = pod.client.stream();
        stream.send(sds::request(&[&name]));
        pod.shim.wait_for_log(REFUSED).await?;
        stream.expect_silence(QUIET).await?;
    }
    assert_eq!(pod.shim.log().count(REFUSED), 3);

    // A good file that becomes a link that leads out: what was held stays, and the other is not served.
    let name = certificate(&files.open.join("bundle.pem"));
    let (mut stream, answer) = pod.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    fs::rename(files.open.join("out.pem"), files.open.join("bundle.pem")).or_fail("swap the file")?;
    let led_out =
        |lines: &[String]| lines.iter().find(|line| line.contains("still serving its last good content")).cloned();
    pod.shim.wait_until("a word on the link", led_out).await?;
    stream.expect_silence(QUIET).await
}
