//! Who may ask. A shim under a user id of its own needs root to start it: without root these tests say so and check
//! nothing, unless `REQUIRE_ROOT` is set.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use testkit::{
    OrFail,
    confined::{Confinement, own},
    fixture::{Logged, Pod, Site},
    scratch::Scratch,
    shim::ShimBuilder,
    workload_api::WorkloadApi,
};

use crate::scene::{at, serve, socket, with_api};

#[tokio::test]
async fn by_default_the_socket_is_for_our_own_user_alone() -> testkit::Result {
    let (pod, _api) = serve(|shim| shim).await?;
    let mode = |pod: &Pod| fs::metadata(socket(&pod.site)).map(|found| found.permissions().mode() & 0o777);
    assert_eq!(mode(&pod).or_fail("look at the socket")?, 0o600);
    let (pod, _api) = serve(|shim| shim.env("SDS_SHIM_WORKLOAD_API_UIDS", "2000, 2001")).await?;
    assert_eq!(mode(&pod).or_fail("look at the socket")?, 0o666);
    Ok(())
}

/// The users of one socket are not those of the other, whichever of them is open.
#[tokio::test]
async fn each_socket_has_its_own_users() -> testkit::Result {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("REQUIRE_ROOT").is_none(), "REQUIRE_ROOT is set, and we are not root");
    if !root {
        eprintln!("not checked: another user's shim can be started only as root");
        return Ok(());
    }
    let site = Site::new().await?;
    // As confined users are: the kit lets our own user in to SDS, and nobody has let it in to this.
    let directory = Scratch::new("application")?;
    chown(directory.path(), Some(1337), Some(1337)).or_fail("give it away")?;
    let api = directory.path().join("agent.sock");
    let start = |edit: fn(ShimBuilder) -> ShimBuilder| -> testkit::Result<Logged> {
        own(site.workload.path(), 1337, 1337).or_fail("give it to the user of the shim")?;
        let shim = site.shim().env("SDS_SHIM_WORKLOAD_API", at(&api)).confined(Confinement::default());
        Ok(Logged(edit(shim).start()?))
    };
    let mut shim = start(|shim| shim)?;
    shim.connect().await?;
    if let Ok(client) = WorkloadApi::connect(&api).await {
        assert!(client.svids().await.is_err(), "root is served");
    }
    let line = shim.wait_for_log("refused a connection to the Workload API socket").await?;
    assert!(line.contains("uid=0") && line.contains("SDS_SHIM_WORKLOAD_API_UIDS"), "{line}");
    let status = shim.admin("/status").await?.text();
    let status: serde_json::Value = serde_json::from_str(&status).or_fail("read the status")?;
    assert!(status["workload_api"]["refused_uids"]["0"].as_u64() > Some(0), "{}", status["workload_api"]);
    assert_eq!(status["sds"]["refused_uids"], serde_json::json!({}));
    shim.terminate().await?;
    let mut shim = start(|shim| shim.env("SDS_SHIM_WORKLOAD_API_UIDS", "0").env("SDS_SHIM_ALLOW_UIDS", "2000"))?;
    let client = WorkloadApi::wait_for(&api).await?;
    client.svid().await?;
    if let Ok(client) = shim.connect().await {
        assert!(client.fetch(testkit::sds::request(&["default"])).await.is_err(), "root is served over SDS");
    }
    shim.wait_for_log("refused a connection to the SDS socket").await?;
    Ok(())
}

/// What cannot work ends the shim, with the variable that is to blame.
#[tokio::test]
async fn mistakes_are_named() -> testkit::Result {
    let site = Site::new().await?;
    let plain = site.workload.path().join("plain");
    fs::write(&plain, "in the way").or_fail("write a file")?;
    let sds = site.workload.socket();
    for (value, more, told) in [
        ("unix:relative.sock".to_owned(), None, "SDS_SHIM_WORKLOAD_API: expected unix: and an absolute path"),
        ("unix:".to_owned(), None, "SDS_SHIM_WORKLOAD_API: expected unix: and an absolute path"),
        ("tcp:127.0.0.1:1".to_owned(), None, "SDS_SHIM_WORKLOAD_API: expected unix: and an absolute path"),
        (at(&sds), None, "SDS_SHIM_WORKLOAD_API: that is the SDS socket"),
        (at(&plain), None, "is not a socket: remove it or choose another SDS_SHIM_WORKLOAD_API"),
        (
            at(&socket(&site)),
            Some(("SDS_SHIM_TOKEN_SOURCE", "request")),
            "SDS_SHIM_WORKLOAD_API: with SDS_SHIM_TOKEN_SOURCE",
        ),
        (
            at(&socket(&site)),
            Some(("SDS_SHIM_WORKLOAD_API_UIDS", "app")),
            "SDS_SHIM_WORKLOAD_API_UIDS: expected user IDs",
        ),
        (
            at(&socket(&site)),
            Some(("SDS_SHIM_WORKLOAD_API_UIDS", "65534")),
            "SDS_SHIM_WORKLOAD_API_UIDS: 65534 is what",
        ),
    ] {
        let shim = site.shim().env("SDS_SHIM_WORKLOAD_API", value.clone());
        let shim = more.into_iter().fold(shim, |shim, (name, value)| shim.env(name, value));
        let mut shim = Logged(shim.start()?);
        assert!(!shim.wait_exit().await?.success(), "{value}");
        assert!(shim.log().contains(told), "{value}: {told:?} is not told");
    }
    // A URL, as some clients have the address.
    let shim = site.shim().env("SDS_SHIM_WORKLOAD_API", format!("unix://{}", socket(&site).display()));
    let mut shim = Logged(shim.start()?);
    WorkloadApi::wait_for(&socket(&site)).await?.svid().await?;
    shim.terminate().await?;
    let off = with_api(&site).env("SDS_SHIM_WORKLOAD_API", "off");
    let mut shim = Logged(off.start()?);
    shim.connect().await?;
    assert!(!socket(&site).exists());
    Ok(())
}
