//! The socket file and the process behind it: how they come, who may connect, how they go.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use testkit::{
    OrFail, PATIENCE, Workload,
    development_ca::{CaOptions, Fault},
    fixture::{Logged, Pod, Site, names, serial},
    scratch::Scratch,
    sds,
    shim::{Shim, ShimBuilder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

/// `sysexits.h`: the service cannot be given.
const EX_UNAVAILABLE: i32 = 69;

fn inode(path: &std::path::Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

/// A shim in an otherwise empty directory: no CA, no token, no root.
fn alone(scratch: &Scratch) -> ShimBuilder {
    let shim = Shim::builder(scratch.path());
    shim.env("CA_ADDR", "localhost:1").env("POD_NAMESPACE", "foo").env("SERVICE_ACCOUNT", "sleep")
}

/// Expects exit 69 and a sentence with all of `parts`.
async fn expect_refusal(shim: ShimBuilder, parts: &[&str]) -> testkit::Result {
    let mut shim = Logged(shim.start()?);
    assert_eq!(shim.wait_exit().await?.code(), Some(EX_UNAVAILABLE));
    let log = shim.log().lines().join("\n");
    for part in parts {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    Ok(())
}

/// The HTTP/2 SETTINGS frame, for which Istio's agent waits when it decides whether to step aside.
async fn expect_settings(socket: &std::path::Path) -> testkit::Result {
    let mut raw = sds::raw(socket).await?;
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.or_fail("write the preface")?;
    let mut frame = [0; 9];
    let read = timeout(PATIENCE, raw.read_exact(&mut frame)).await.or_fail("wait for the SETTINGS")?;
    read.or_fail("read the SETTINGS")?;
    assert_eq!((frame[3], frame[4]), (4, 0), "a SETTINGS frame that is no acknowledgement");
    Ok(())
}

#[tokio::test]
async fn it_answers_settings_before_there_is_a_ca_a_token_or_even_a_directory() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let mut shim = Logged(alone(&scratch).start()?);
    shim.connect().await?;
    expect_settings(shim.socket()).await
}

#[tokio::test]
async fn it_answers_settings_while_the_ca_hangs() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::Hang));
    let pod = site.serve().await?;
    pod.site.ca.wait_for_calls(1).await;
    expect_settings(pod.shim.socket()).await
}

#[tokio::test]
async fn the_socket_is_for_its_user_alone() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let mut shim = Logged(alone(&scratch).start()?);
    shim.connect().await?;
    let metadata = fs::symlink_metadata(shim.socket()).or_fail("look at the socket")?;
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    let directory = shim.socket().parent().expect("the socket lies in a directory");
    let entries = fs::read_dir(directory).or_fail("list the directory")?.count();
    assert_eq!(entries, 1, "nothing but the socket is left in its directory");
    Ok(())
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() -> testkit::Result {
    let pod = Site::new().await?;
    let stale = UnixListener::bind(pod.workload.socket()).or_fail("leave a socket behind")?;
    drop(stale);
    let before = inode(&pod.workload.socket());
    assert!(before.is_some());
    let pod = pod.serve().await?;
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    Ok(())
}

/// A volume that has as many files as it may: the dead socket is one of them. Mounting it takes root.
#[tokio::test]
async fn a_stale_socket_on_a_full_volume_is_replaced() -> testkit::Result {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            // The shim has gone before: nobody else uses it.
            let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
    let pod = Site::new().await?;
    let directory = pod.workload.socket().parent().expect("the socket lies in a directory").to_owned();
    let mount = ["-t", "tmpfs", "-o", "nr_inodes=2,mode=0755", "tmpfs"];
    let ran = std::process::Command::new("mount").args(mount).arg(&directory).status().or_fail("run mount")?;
    assert!(ran.success(), "a tmpfs can be mounted only as root");
    let _mounted = Mounted(directory);
    drop(UnixListener::bind(pod.workload.socket()).or_fail("leave a socket behind")?);
    let pod = pod.serve().await?;
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn a_file_in_the_sockets_place_is_kept_and_named() -> testkit::Result {
    let path = "var/run/secrets/workload-spiffe-uds/socket";
    for make in [|path: &std::path::Path| fs::write(path, "precious"), |path: &std::path::Path| fs::create_dir(path)] {
        let scratch = Scratch::new("tests")?;
        let pod = Workload::create(scratch.path(), "foo", "sleep", "").or_fail("lay out the pod")?;
        make(&pod.socket()).or_fail("put something at the path")?;
        let before = inode(&pod.socket());
        expect_refusal(alone(&scratch), &[path, "not a socket", "WORKLOAD_IDENTITY_SOCKET_FILE"]).await?;
        assert_eq!(inode(&pod.socket()), before);
    }
    Ok(())
}

#[tokio::test]
async fn a_symbolic_link_is_not_followed() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let pod = Workload::create(scratch.path(), "foo", "sleep", "").or_fail("lay out the pod")?;
    let target = scratch.path().join("precious");
    fs::write(&target, "precious").or_fail("write the target")?;
    std::os::unix::fs::symlink(&target, pod.socket()).or_fail("make the link")?;
    expect_refusal(alone(&scratch), &["not a socket"]).await?;
    assert_eq!(fs::read_to_string(&target).or_fail("read the target")?, "precious");
    Ok(())
}

#[tokio::test]
async fn a_path_that_cannot_be_made_is_named_with_the_reason() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    fs::write(scratch.path().join("var"), "in the way").or_fail("write a file")?;
    expect_refusal(alone(&scratch), &["workload-spiffe-uds", "uid", "Not a directory"]).await
}

#[tokio::test]
async fn another_file_name_is_served_and_the_usual_one_is_not() -> testkit::Result {
    let site = Site::new().await?;
    let shim = site.shim().env("WORKLOAD_IDENTITY_SOCKET_FILE", "other");
    let pod = site.serve_with(shim.socket("./var/run/secrets/workload-spiffe-uds/other")).await?;
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    assert_eq!(inode(&pod.site.workload.socket()), None);
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_in_order_and_removes_the_socket() -> testkit::Result {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut pod = Pod::new().await?;
        let (mut stream, _) = pod.ask(&["default"]).await?;
        pod.shim.signal(signal)?;
        assert_eq!(pod.shim.wait_exit().await?.code(), Some(0));
        assert_eq!(inode(pod.shim.socket()), None);
        stream.expect_closed().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_does_not_delay_the_end() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::Hang));
    // Longer than the wait for the exit: only an end that does not wait for the call is in time.
    let shim = site.shim().env("SDS_SHIM_CA_TIMEOUT", "10m").env("SDS_SHIM_CA_ANSWER_TIMEOUT", "10m");
    let mut pod = site.serve_with(shim).await?;
    pod.site.ca.wait_for_calls(1).await;
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_late_end_of_an_old_server_leaves_its_successors_socket() -> testkit::Result {
    let mut old = Pod::new().await?;
    let builder = old.site.shim();
    let before = inode(old.shim.socket());
    let mut new = Logged(builder.start()?);
    new.wait_for_log("serving SDS").await?;
    let successor = inode(new.socket());
    assert!(successor.is_some() && successor != before);
    assert_eq!(old.shim.terminate().await?.code(), Some(0));
    assert_eq!(inode(new.socket()), successor);
    let client = new.connect().await?;
    let answer = client.fetch(sds::request(&["default"])).await.or_fail("fetch from the successor")?;
    assert_eq!(names(&answer)?, ["default"]);
    assert_eq!(new.terminate().await?.code(), Some(0));
    assert_eq!(inode(new.socket()), None, "its own end takes the socket away");
    Ok(())
}

#[tokio::test]
async fn the_path_is_never_without_a_socket_while_a_successor_takes_over() -> testkit::Result {
    let old = Pod::new().await?;
    let before = inode(old.shim.socket());
    let new = Logged(old.site.shim().start()?);
    let deadline = Instant::now() + PATIENCE;
    while inode(new.socket()) == before {
        assert!(inode(new.socket()).is_some());
        drop(sds::raw(new.socket()).await?);
        assert!(Instant::now() < deadline, "the successor does not take over");
    }
    drop(sds::raw(new.socket()).await?);
    Ok(())
}

#[tokio::test]
async fn after_a_kill_and_a_restart_a_client_gets_its_secrets_on_a_new_connection() -> testkit::Result {
    let mut pod = Pod::new().await?;
    let (mut stream, before) = pod.ask(&["default"]).await?;
    pod.shim.kill().await?;
    stream.expect_closed().await?;
    assert!(inode(pod.shim.socket()).is_some(), "nobody was left to take it away");
    let mut again = Logged(pod.site.shim().start()?);
    again.wait_for_log("serving SDS").await?;
    let mut stream = again.connect().await?.stream();
    stream.send(sds::ack(&before, &["default"]));
    assert_ne!(serial(&stream.recv().await?)?, serial(&before)?);
    Ok(())
}

#[tokio::test]
async fn a_socket_file_that_somebody_removed_does_not_end_the_open_streams() -> testkit::Result {
    let mut pod = Pod::new().await?;
    let (mut stream, _) = pod.ask(&["default"]).await?;
    fs::remove_file(pod.shim.socket()).or_fail("remove the socket")?;
    pod.rotate()?;
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn it_gives_up_core_dumps_and_new_privileges() -> testkit::Result {
    let pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", pod.shim.pid()));
    let status = proc("status").or_fail("read its status")?;
    assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
    let limits = proc("limits").or_fail("read its limits")?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    assert_eq!(core.split_whitespace().filter(|field| *field == "0").count(), 2, "{core}");
    Ok(())
}

#[tokio::test]
async fn files_of_a_loose_umask_are_still_its_own() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let mut shim = Logged(alone(&scratch).start()?);
    shim.connect().await?;
    let made = fs::metadata(scratch.path().join("var/run/secrets/workload-spiffe-uds")).or_fail("look")?;
    assert_eq!(made.permissions().mode() & 0o077, 0, "the directory that it made");
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("read its status")?;
    assert!(status.lines().any(|line| line == "Umask:\t0077"), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_waits_does_not_outlive_the_process() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let waiting = pod.client.clone();
    let call = tokio::spawn(async move { waiting.fetch(sds::request(&["default"])).await.is_err() });
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    assert!(timeout(Duration::from_secs(30), call).await.or_fail("wait for the call's end")?.or_fail("join")?);
    Ok(())
}
