//! The system calls that are left: the filter that the process puts on itself, and the profile for container runtimes.
//!
//! It is on by default, so the whole suite runs under it; `make without-sandbox` runs it without.

use std::{collections::BTreeSet, fs};

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::{
    calls::{LOOKED_AT, STARTING},
    fixture::{Logged, Site},
    sds, workspace,
};

/// What the container runtime takes after it has loaded the profile.
const RUNTIME: &[&str] = &["capget", "capset", "setgroups", "setgid", "setuid"];

fn profile() -> Value {
    let path = workspace().join("packaging/seccomp/sds-shim.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the profile")).expect("it is JSON")
}

fn names(rule: &Value) -> impl Iterator<Item = &str> {
    rule["names"].as_array().expect("names").iter().map(|name| name.as_str().expect("a name"))
}

#[test]
fn the_profile_allows_what_the_filter_allows_and_what_starting_takes() {
    let profile = profile();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(profile["defaultErrnoRet"], 1);
    let rules = profile["syscalls"].as_array().expect("rules");
    assert!(rules.iter().all(|rule| rule["comment"].as_str().is_some_and(|comment| !comment.is_empty())));
    let allowing = |looked_at: bool| {
        let rules = rules.iter().filter(move |rule| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule["args"].as_array().is_some_and(|args| !args.is_empty()) == looked_at
        });
        rules.flat_map(names).collect::<BTreeSet<_>>()
    };
    // The commands that ask a running shim may signal it.
    let ours = [locked::SERVING_CALLS, locked::OLDER_CALLS, locked::NEWER_CALLS, locked::FOLLOWING_CALLS].into_iter();
    let ours = ours.flatten().filter_map(|name| name.strip_prefix("SYS_"));
    assert_eq!(allowing(false), ours.chain(STARTING.iter().chain(RUNTIME).copied()).collect());
    assert_eq!(allowing(true), LOOKED_AT.iter().copied().collect());
}

#[tokio::test]
async fn under_the_filter_everything_is_served() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().env("SDS_SHIM_SECCOMP", "strict").start()?);
    let mut stream = shim.connect().await?.stream();
    shim.wait_for_log("sandbox: seccomp rejects system calls that serving does not need").await?;
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    stream.send(sds::ack(&first, &["default"]));
    shim.signal(Signal::SIGUSR1)?;
    stream.recv().await?;
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).expect("it runs");
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    assert_eq!(shim.admin("/status").await?.status, 200);
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// A filter is inherited: it must come after the command.
#[tokio::test]
async fn a_command_is_not_bound_by_the_filter() -> testkit::Result {
    let site = Site::new().await?;
    let command = ["/bin/sh", "-c", "sleep 0; grep Seccomp: /proc/self/status; kill -USR1 $PPID; read line; exit 7"];
    let mut shim = Logged(site.shim().env("SDS_SHIM_SECCOMP", "strict").exec(&command).start()?);
    shim.wait_for_log("sandbox: seccomp rejects system calls that serving does not need").await?;
    shim.wait_for_log("Seccomp:\t0").await?;
    assert_eq!(shim.wait_exit().await?.code(), Some(7));
    Ok(())
}
