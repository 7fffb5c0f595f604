//! The socket, the files that are written, and other users. A shim under a user id of its own needs root to start it:
//! without root these tests say so and check nothing, unless `REQUIRE_ROOT` is set.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    fixture::{Site, names},
    process::Process,
    sds::{self, SdsClient},
    workspace,
};
use tokio::time::{Instant, sleep};

/// The user of istio-proxy's containers.
const UID: u32 = 1337;

/// Whether other users can be had.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("REQUIRE_ROOT").is_none(), "REQUIRE_ROOT is set, and we are not root");
    if !root {
        eprintln!("not checked: another user's shim can be started only as root");
    }
    root
}

fn owned(path: &Path, uid: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            owned(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

/// Lets everybody traverse what leads to the site's socket.
fn open_to_all(site: &Site) -> testkit::Result {
    let socket = site.workload.socket();
    for directory in socket.ancestors().skip(1).take_while(|path| path.starts_with(site.workload.path())) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).or_fail("open the pod")?;
    }
    Ok(())
}

/// Where certificates are written for the user 1337: a directory of root's with this mode, in a site that is that user's.
async fn output_of_root(mode: u32) -> Result<(Site, PathBuf), Failure> {
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let directory = site.workload.path().join("output");
    fs::create_dir(&directory).or_fail("make the directory")?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).or_fail("set the mode")?;
    Ok((site, directory))
}

/// A shim as the user 1337 in the site's directory, which it owns.
fn start(site: &Site, more: &[(&str, &str)]) -> Result<Process, Failure> {
    let directory = site.workload.path();
    // Inside the directory, because its user may not be able to reach ours.
    let program = directory.join("sds-shim");
    let built = std::env::var_os("SHIM_BINARY").map_or_else(|| workspace().join("target/dist/sds-shim"), PathBuf::from);
    // Copied by another process: with the file open for writing here, a child that another test starts at the same
    // moment would inherit it, and the program could not be executed ("text file busy").
    let copied = Command::new("cp").arg(&built).arg(&program).status().or_fail("run cp")?;
    assert!(copied.success(), "copy {}", built.display());
    let arguments = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "./sds-shim"].map(str::to_owned);
    let address = format!("localhost:{}", site.ca.address().port());
    let env = [("CA_ADDR", &*address), ("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep")];
    let env: Vec<_> = env.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Process::start("sds-shim of uid 1337", Path::new("/usr/bin/setpriv"), &arguments, &env, directory)
}

/// Waits until the socket is there, and connects: `None` when we are not let in.
async fn is_served(socket: &Path) -> Result<Option<SdsClient>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "no socket appears");
        sleep(POLL).await;
    }
    // Somebody who is not let in may notice already in the handshake.
    let Ok(client) = SdsClient::connect(socket).await else { return Ok(None) };
    let answered = client.fetch(sds::request(&["default"])).await;
    Ok(answered.is_ok().then_some(client))
}

#[tokio::test]
async fn another_user_is_refused_and_named_in_the_log() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let shim = start(&site, &[])?;
    // Modes do not keep root out: it is the peer's user that does.
    assert!(is_served(&site.workload.socket()).await?.is_none());
    let line = shim.wait_for_log("refused a connection to the SDS socket").await?;
    assert!(line.contains("uid=0") && line.contains("SDS_SHIM_ALLOW_UIDS"), "{line}");
    Ok(())
}

#[tokio::test]
async fn another_user_can_be_allowed() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let shim = start(&site, &[("SDS_SHIM_ALLOW_UIDS", "2000, 0")])?;
    let client = is_served(&site.workload.socket()).await?;
    let client = client.ok_or_else(|| shim.failure("the allowed user is not served"))?;
    let answer = client.fetch(sds::request(&["default"])).await.or_fail("fetch")?;
    assert_eq!(names(&answer)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn its_memory_is_closed_to_other_processes_of_its_user() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let shim = start(&site, &[("SDS_SHIM_ALLOW_UIDS", "0")])?;
    assert!(is_served(&site.workload.socket()).await?.is_some());
    let memory = fs::metadata(format!("/proc/{}/mem", shim.pid())).or_fail("look at its memory")?;
    assert_eq!(memory.uid(), 0, "a process that is not dumpable belongs to root, not to its user");
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("read its status")?;
    let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
    assert!(uids.contains("1337"), "{uids}");
    Ok(())
}

#[tokio::test]
async fn an_unwritable_directory_is_an_error_with_user_and_path() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    let directory = site.workload.socket().parent().map(Path::to_owned).unwrap_or_default();
    open_to_all(&site)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2755)).or_fail("set the mode")?;
    chown(&directory, Some(0), Some(7)).or_fail("set the owner")?;
    let mut shim = start(&site, &[])?;
    assert_eq!(shim.wait_exit().await?.code(), Some(69));
    let log = shim.log().lines().join("\n");
    for part in ["Permission denied", "os error 13", "uid 1337", "0:7", "2755", "workload-spiffe-uds/socket"] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_written_into_a_directory_of_somebody_else() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    // What an emptyDir is.
    let (site, directory) = output_of_root(0o777).await?;
    let shim = start(&site, &[("OUTPUT_CERTS", "./output"), ("SDS_SHIM_OUTPUT_GID", "1337")])?;
    let deadline = Instant::now() + PATIENCE;
    while !directory.join("root-cert.pem").exists() {
        assert!(Instant::now() < deadline, "nothing is written: {}", shim.log().lines().join("\n"));
        sleep(POLL).await;
    }
    assert_eq!(fs::metadata(directory.join("key.pem")).or_fail("look at the key")?.uid(), UID);
    let there = fs::metadata(&directory).or_fail("look at the directory")?;
    assert_eq!((there.uid(), there.permissions().mode() & 0o777), (0, 0o777));
    Ok(())
}

#[tokio::test]
async fn an_unwritable_directory_is_reported_with_owner_and_mode() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let (site, _) = output_of_root(0o755).await?;
    let shim = start(&site, &[("OUTPUT_CERTS", "./output")])?;
    let line = shim.wait_for_log("the previous files stay in place").await?;
    for part in ["./output", "Permission denied", "owner 0:0", "mode 0755", "running as 1337:1337"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    Ok(())
}

#[tokio::test]
async fn an_allowed_user_who_is_neither_root_nor_ours_gets_through_the_mode() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let socket = site.workload.socket();
    open_to_all(&site)?;
    let shim = start(&site, &[("SDS_SHIM_ALLOW_UIDS", "0,2000")])?;
    assert!(is_served(&socket).await?.is_some());
    assert_eq!(fs::metadata(&socket).or_fail("look at the socket")?.permissions().mode() & 0o777, 0o666);
    for (uid, expected) in [("2000", true), ("2001", false)] {
        let command = ["--reuid", uid, "--regid", uid, "--clear-groups", "./sds-shim", "wait", "--timeout", "5s"];
        let asked = tokio::process::Command::new("setpriv").args(command).current_dir(site.workload.path()).output();
        let asked = asked.await.or_fail("ask as another user")?;
        let told = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!(asked.status.success(), expected, "uid {uid}: {told}");
        // It is the look at the peer that refuses, not the mode.
        assert!(!told.contains("Permission denied"), "uid {uid}: {told}");
    }
    assert!(shim.wait_for_log("refused a connection to the SDS socket").await?.contains("uid=2001"));
    Ok(())
}

#[tokio::test]
async fn without_such_a_user_the_socket_is_ours_alone() -> testkit::Result {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let _shim = start(&site, &[("SDS_SHIM_ALLOW_UIDS", "0,1337")])?;
    assert!(is_served(&site.workload.socket()).await?.is_some());
    let mode = fs::metadata(site.workload.socket()).or_fail("look at the socket")?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}
