//! A crash of the shim: the process executes itself anew in place, and keeps its number, its socket and its command. Faults
//! are made by a tracer, so these tests need root.

mod hang;
mod key;
mod renewals;
mod thief;
mod traffic;

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::Path,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail, POLL,
    confined::{Break, break_it, crash},
    development_ca::Fault,
    fixture::{Pod, Site, names, serial},
    process::Process,
    sds::{self, Secret},
    shim::Shim,
    workload_api::{self, WorkloadApi},
};
use tokio::time::sleep;
use tonic::Code;

const RESTARTED: &str = "restarted in place";

/// A pod with a shim that the test makes crash.
async fn pod() -> Result<Pod, Failure> {
    let site = Site::new().await?;
    let shim = site.shim().may_crash();
    site.serve_with(shim).await
}

/// Crashes the process, and waits until there is a successor.
async fn break_and_see(shim: &Process) -> Result<String, Failure> {
    let mark = shim.log().mark();
    crash(shim.pid())?;
    let line = shim.wait_for_log_after(mark, RESTARTED).await?;
    shim.wait_for_log_after(mark, "serving SDS").await?;
    Ok(line)
}

/// What a client that has just come is served.
async fn served(shim: &mut Shim) -> Result<String, Failure> {
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let answer = stream.recv().await?;
    assert_eq!(names(&answer)?, ["default"]);
    serial(&answer)
}

/// The same with its key, which fits.
async fn certificate(shim: &mut Shim) -> Result<Secret, Failure> {
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let secret = sds::secrets(&stream.recv().await?)?.remove(0);
    assert!(secret.key_fits_leaf()?);
    Ok(secret)
}

#[tokio::test]
async fn a_crash_keeps_the_process_its_socket_and_its_command() -> testkit::Result {
    let site = Site::new().await?;
    let script = "trap 'exit 7' TERM; echo \"command $$ of $PPID\"; while :; do sleep 0.02; done";
    let shim = site.shim().may_crash().exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    let command = pod.shim.wait_for_log("command ").await?;
    pod.shim.wait_for_log(" of ").await?;
    // Before its number is known, a crash ends the process.
    pod.shim.wait_for_log("command started").await?;
    served(&mut pod.shim).await?;
    let file = fs::metadata(pod.shim.socket()).or_fail("look at the socket")?;
    for crash in 1..=3 {
        let line = break_and_see(&pod.shim).await?;
        assert!(
            line.contains(" WARN ") && line.contains("crashed with SIGSEGV (code 1) outside of the program"),
            "{line}"
        );
        assert!(line.contains(&format!("crash {crash} of this process")), "{line}");
        served(&mut pod.shim).await?;
    }
    let after = fs::metadata(pod.shim.socket()).or_fail("look at the socket")?;
    assert_eq!(file.ino(), after.ino());
    assert_eq!(pod.shim.log().count("command started"), 1);
    assert_eq!(pod.shim.log().count(&command), 1);
    let name = fs::read_to_string(Path::new("/proc").join(pod.shim.pid().to_string()).join("comm"));
    assert_eq!(name.or_fail("read its name")?.trim(), "sds-shim");
    let metrics = pod.shim.admin("/metrics").await?.text();
    assert!(metrics.contains("\nsds_shim_successors_total 3"), "{metrics}");
    let status = pod.shim.admin("/status").await?.text();
    assert!(status.contains("crashed with SIGSEGV"), "{status}");
    assert_eq!(pod.shim.terminate().await?.code(), Some(7));
    assert!(!pod.shim.socket().exists());
    Ok(())
}

/// Applications wait in the queue of a socket of their own meanwhile.
#[tokio::test]
async fn the_socket_of_applications_is_kept_as_well() -> testkit::Result {
    let site = Site::new().await?;
    let socket = workload_api::socket(&site);
    let shim = site.shim().may_crash().env("SDS_SHIM_WORKLOAD_API", workload_api::at(&socket));
    let mut pod = site.serve_with(shim).await?;
    let mut updates = WorkloadApi::wait_for(&socket).await?.svid().await?.1;
    let file = fs::metadata(&socket).or_fail("look at the socket")?.ino();
    for _ in 0..3 {
        break_and_see(&pod.shim).await?;
        assert!(updates.svid().await.is_err(), "its connection ended with the crash");
        updates = WorkloadApi::wait_for(&socket).await?.svid().await?.1;
        assert_eq!(fs::metadata(&socket).or_fail("look at the socket")?.ino(), file);
        served(&mut pod.shim).await?;
    }
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    assert!(!socket.exists());
    Ok(())
}

#[tokio::test]
async fn the_tenth_crash_within_ten_minutes_ends_the_process() -> testkit::Result {
    let mut pod = pod().await?;
    for _ in 0..9 {
        break_and_see(&pod.shim).await?;
    }
    crash(pod.shim.pid())?;
    assert_eq!(pod.shim.wait_exit().await?.signal(), Some(Signal::SIGSEGV as i32));
    assert!(pod.shim.log().contains("sds-shim: 10 crashes within 10 minutes: giving up"));
    Ok(())
}

#[tokio::test]
async fn a_command_that_waits_for_a_certificate_starts_as_it_would_have() -> testkit::Result {
    let script = "umask; ulimit -S -c; env; grep SigBlk /proc/self/status; ls /proc/self/fd; exit 6";
    let run = async |crashes: usize| -> Result<Vec<String>, Failure> {
        let site = Site::new().await?;
        site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
        let shim = site.shim().may_crash().env("SDS_SHIM_WAIT", "certificate").env("RUST_BACKTRACE", "1");
        let launcher = ["sh", "-c", "umask 027; ulimit -S -c 0; exec env --block-signal=USR2 \"$0\" \"$@\""];
        let shim = shim.through(&launcher).exec(&["sh", "-c", script]);
        let mut pod = site.serve_with(shim).await?;
        pod.shim.wait_for_log("cannot obtain a certificate").await?;
        for _ in 0..crashes {
            break_and_see(&pod.shim).await?;
        }
        pod.site.ca.set_fault(None);
        assert_eq!(pod.shim.wait_exit().await?.code(), Some(6));
        let stamped = |line: &String| !line.contains(" main: ") && !line.contains("Z ");
        let varies = |line: &String| !line.contains("PORT") && !line.contains("CA_ADDR") && !line.contains("PWD");
        Ok(pod.shim.log().lines().into_iter().filter(|line| stamped(line) && varies(line)).collect())
    };
    let (as_usual, after_crashes) = (run(0).await?, run(2).await?);
    assert!(as_usual.iter().any(|line| line == "RUST_BACKTRACE=1"), "{as_usual:#?}");
    assert!(!after_crashes.iter().any(|line| line.contains("SDS_SHIM_SUCCESSOR")), "{after_crashes:#?}");
    assert_eq!(after_crashes, as_usual);
    Ok(())
}

#[tokio::test]
async fn a_signal_that_somebody_sends_ends_it_as_ever() -> testkit::Result {
    for signal in [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGTRAP] {
        let mut pod = pod().await?;
        pod.shim.signal(signal)?;
        assert_eq!(pod.shim.wait_exit().await?.signal(), Some(signal as i32));
    }
    Ok(())
}

/// Where nothing else keeps a filter that allows an exec from executing any program, it allows none.
#[tokio::test]
async fn a_filter_that_allows_no_exec_tells_so_and_a_crash_ends_the_process() -> testkit::Result {
    for (variable, value) in [("SDS_SHIM_SECCOMP", "strict"), ("SDS_SHIM_LANDLOCK", "off")] {
        let site = Site::new().await?;
        let shim = site.shim().may_crash().env(variable, value);
        let mut pod = site.serve_with(shim).await?;
        let line = pod.shim.wait_for_log("sandbox: seccomp rejects system calls").await?;
        assert!(line.ends_with("; a crash ends the process"), "{line}");
        crash(pod.shim.pid())?;
        assert_eq!(pod.shim.wait_exit().await?.signal(), Some(Signal::SIGSEGV as i32));
        assert!(pod.shim.log().contains("sds-shim: crashed or hung, and cannot be restarted in place"));
    }
    Ok(())
}

#[tokio::test]
async fn without_a_filter_a_crash_has_a_successor_in_each_domain() -> testkit::Result {
    for level in ["off", "on", "strict"] {
        let site = Site::new().await?;
        let shim = site.shim().may_crash().env("SDS_SHIM_SECCOMP", "off").env("SDS_SHIM_LANDLOCK", level);
        let mut pod = site.serve_with(shim).await?;
        pod.shim.wait_for_log("sandbox: ").await?;
        for _ in 0..2 {
            break_and_see(&pod.shim).await?;
            served(&mut pod.shim).await?;
        }
    }
    Ok(())
}

/// A domain and a filter outlive an exec, and there can be sixteen domains.
#[tokio::test]
async fn a_successor_is_confined_once_and_tells_what_holds() -> testkit::Result {
    for level in ["on", "strict"] {
        let site = Site::new().await?;
        let shim = site.shim().may_crash().env("SDS_SHIM_LANDLOCK", level);
        let mut pod = site.serve_with(shim).await?;
        let holds = |line: String| line.split_once("sandbox: ").map(|(_, what)| what.to_owned());
        let before = holds(pod.shim.wait_for_log("sandbox: ").await?);
        for _ in 0..3 {
            let mark = pod.shim.log().mark();
            break_and_see(&pod.shim).await?;
            assert_eq!(holds(pod.shim.wait_for_log_after(mark, "sandbox: ").await?), before);
            served(&mut pod.shim).await?;
            assert!(pod.shim.admin("/status").await?.text().contains("\"sandbox\":\"seccomp rejects"));
        }
        let status = fs::read_to_string(format!("/proc/{}/status", pod.shim.pid())).or_fail("read its status")?;
        assert!(status.contains("\nSeccomp_filters:\t1\n"), "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_ends_during_a_crash_is_followed() -> testkit::Result {
    for _ in 0..20 {
        let site = Site::new().await?;
        let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
        let shim = site.shim().may_crash().exec(&["sh", "-c", script]);
        let mut pod = site.serve_with(shim).await?;
        pod.shim.wait_for_log("ready").await?;
        // Before its number is known, a crash ends the process.
        pod.shim.wait_for_log("command started").await?;
        pod.shim.signal(Signal::SIGTERM)?;
        // It may have ended before it can crash.
        let _ = crash(pod.shim.pid());
        assert_eq!(pod.shim.wait_exit().await?.code(), Some(9));
    }
    Ok(())
}

/// The kernel has given it away, and nobody else knows of it.
#[tokio::test]
async fn a_signal_that_was_read_when_the_crash_came_is_handled() -> testkit::Result {
    let site = Site::new().await?;
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    let shim = site.shim().may_crash().exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    pod.shim.wait_for_log("ready").await?;
    pod.shim.wait_for_log("command started").await?;
    let pid = pod.shim.pid();
    let broken = tokio::task::spawn_blocking(move || break_it(pid, Break::Signalled));
    let traced = format!("/proc/{pid}/status");
    while !fs::read_to_string(&traced).or_fail("read its status")?.contains("State:\tS (sleeping)\nTgid:")
        || fs::read_to_string(&traced).or_fail("read its status")?.contains("TracerPid:\t0\n")
    {
        sleep(POLL).await;
    }
    pod.shim.signal(Signal::SIGTERM)?;
    broken.await.map_err(|error| Failure::new(error.to_string()))??;
    pod.shim.wait_for_log(RESTARTED).await?;
    assert_eq!(pod.shim.wait_exit().await?.code(), Some(9));
    Ok(())
}

#[tokio::test]
async fn a_ca_that_asks_for_patience_is_not_called_earlier() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::later(Code::Unavailable, 30)));
    let shim = site.shim().may_crash();
    let pod = site.serve_with(shim).await?;
    pod.shim.wait_for_log("retrying in").await?;
    for _ in 0..2 {
        let mark = pod.shim.log().mark();
        break_and_see(&pod.shim).await?;
        pod.shim.wait_for_log_after(mark, "not calling the CA for ").await?;
    }
    assert_eq!(pod.site.ca.calls().len(), 1);
    // Who asks for it is not kept waiting.
    pod.site.ca.set_fault(None);
    pod.shim.signal(Signal::SIGUSR1)?;
    pod.shim.wait_for_log("certificate issued").await?;
    assert_eq!(pod.site.ca.calls().len(), 2);
    Ok(())
}

fn children(parent: u32) -> Result<String, Failure> {
    fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).or_fail("list the children")
}

/// The process that `unshare` has started, which is the first one of its namespace.
fn first_child(parent: u32) -> Result<u32, Failure> {
    children(parent)?
        .split(' ')
        .next()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(|| Failure::new(format!("{parent} has no child")))
}

#[tokio::test]
async fn the_first_process_of_a_namespace_keeps_its_children() -> testkit::Result {
    let site = Site::new().await?;
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    // What is left behind is reaped by a successor as well. Nobody inside can end the first process.
    let script = "trap 'exit 8' TERM; echo parent $PPID; kill -SEGV 1; kill -ABRT 1
        until [ -e go ]; do sleep 0.02; done; (sh -c 'exit 3' &)
        while :; do sleep 0.02; done";
    let shim = site.shim().may_crash().through(&unshare).env("SDS_SHIM_LOG", "debug").exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    pod.shim.wait_for_log("parent 1").await?;
    pod.shim.wait_for_log("command started").await?;
    let first = first_child(pod.shim.pid())?;
    for _ in 0..3 {
        let mark = pod.shim.log().mark();
        crash(first)?;
        pod.shim.wait_for_log_after(mark, RESTARTED).await?;
        served(&mut pod.shim).await?;
    }
    fs::write(pod.site.workload.path().join("go"), "").or_fail("let the command go on")?;
    pod.shim.wait_for_log("reaped an orphan: exit status: 3").await?;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGTERM).or_fail("signal the first process")?;
    assert_eq!(pod.shim.wait_exit().await?.code(), Some(8));
    Ok(())
}
