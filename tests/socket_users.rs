//! The socket and other users. A shim under a user id of its own needs root to start it: without root these tests say
//! so and check nothing, unless `REQUIRE_ROOT` is set.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use common::{Site, names};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    process::Process,
    sds::{self, SdsClient},
    workspace,
};
use tokio::time::{Instant, sleep};

type Outcome = Result<(), Failure>;

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
async fn another_user_is_refused_and_named_in_the_log() -> Outcome {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    owned(site.workload.path(), UID).or_fail("give the pod away")?;
    let shim = start(&site, &[])?;
    // Modes do not keep root out: it is the peer's user that does.
    assert!(is_served(&site.workload.socket()).await?.is_none());
    let line = shim.wait_for_log("was refused").await?;
    assert!(line.contains("uid=0") && line.contains("SDS_SHIM_ALLOW_UIDS"), "{line}");
    Ok(())
}

#[tokio::test]
async fn another_user_can_be_allowed() -> Outcome {
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
async fn its_memory_is_closed_to_other_processes_of_its_user() -> Outcome {
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
async fn a_directory_that_is_not_writable_is_an_error_that_says_who_and_where() -> Outcome {
    if !is_root() {
        return Ok(());
    }
    let site = Site::new().await?;
    let directory = site.workload.socket().parent().map(Path::to_owned).unwrap_or_default();
    fs::set_permissions(site.workload.path(), fs::Permissions::from_mode(0o755)).or_fail("open the pod")?;
    for ancestor in directory.ancestors().take_while(|ancestor| *ancestor != site.workload.path()) {
        fs::set_permissions(ancestor, fs::Permissions::from_mode(0o755)).or_fail("open the pod")?;
    }
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
