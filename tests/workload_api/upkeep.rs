//! Status, metrics, the socket's file, and the command that `exec` starts.

use std::fs;

use testkit::{
    OrFail,
    fixture::{Logged, Site},
    http,
    workload_api::WorkloadApi,
};

use crate::scene::{at, serve, socket, with_api};

#[tokio::test]
async fn streams_are_shown_and_counted() -> testkit::Result {
    let (mut pod, api) = serve(|shim| shim).await?;
    let (_, mut updates) = api.svid().await?;
    let mut bundles = api.bundles().await.or_fail("ask for bundles")?;
    bundles.next().await?;
    pod.rotate()?;
    updates.svid().await?;
    let status: serde_json::Value =
        serde_json::from_str(&pod.shim.admin("/status").await?.text()).or_fail("read the status")?;
    let shown = &status["workload_api"];
    assert_eq!((&shown["connections"], &shown["stream_count"]), (&1.into(), &2.into()), "{shown}");
    assert_eq!(shown["streams"][0]["call"], "FetchX509SVID");
    assert_eq!(shown["streams"][0]["pid"], std::process::id());
    assert_eq!(shown["streams"][0]["resources"][0]["state"], "sent");
    assert_eq!(shown["streams"][1]["call"], "FetchX509Bundles");
    assert_eq!(status["sds"]["streams"], serde_json::json!([]), "they are none of Envoy's");
    let metrics = pod.shim.admin("/metrics").await?.text();
    for line in [
        "sds_shim_workload_api_connections 1\n",
        "sds_shim_workload_api_streams 2\n",
        "sds_shim_workload_api_pushes_total{resource=\"default\"} 2\n",
        "sds_shim_workload_api_pushes_total{resource=\"ROOTCA\"} 1\n",
        "sds_shim_sds_streams 0\n",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in {metrics}");
    }
    assert!(pod.shim.log().contains("sent to an application"));
    // Without it nothing of it is shown.
    let mut pod = testkit::fixture::Pod::new().await?;
    let http::Answer { .. } = pod.shim.admin("/healthz").await?;
    assert!(!pod.shim.admin("/metrics").await?.text().contains("workload_api"));
    Ok(())
}

#[tokio::test]
async fn the_socket_is_recreated_and_removed_with_the_shim() -> testkit::Result {
    let (mut pod, api) = serve(|shim| shim.env("SDS_SHIM_LANDLOCK", "strict")).await?;
    let (_, mut updates) = api.svid().await?;
    let socket = socket(&pod.site);
    fs::remove_file(&socket).or_fail("remove the socket")?;
    let line = pod.shim.wait_for_log("the Workload API socket had been removed and was recreated").await?;
    assert!(line.contains("agent.sock"), "{line}");
    WorkloadApi::wait_for(&socket).await?.svid().await?;
    pod.rotate()?;
    updates.svid().await?;
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    assert!(!socket.exists());
    Ok(())
}

#[tokio::test]
async fn the_command_gets_the_sockets_address_unless_already_set() -> testkit::Result {
    let site = Site::new().await?;
    let address = format!("unix://{}", socket(&site).display());
    let script = "echo \"address is ${SPIFFE_ENDPOINT_SOCKET-unset}\"";
    let command = ["sh", "-c", script];
    for (shim, told) in [
        (with_api(&site), address.as_str()),
        (with_api(&site).env("SPIFFE_ENDPOINT_SOCKET", "unix:/elsewhere"), "unix:/elsewhere"),
        (site.shim(), "unset"),
    ] {
        let mut shim = Logged(shim.exec(&command).start()?);
        assert_eq!(shim.wait_exit().await?.code(), Some(0));
        assert!(shim.log().contains(&format!("address is {told}")), "{told}");
    }
    Ok(())
}

#[tokio::test]
async fn check_shows_who_may_connect_and_checks_the_directory() -> testkit::Result {
    let site = Site::new().await?;
    let plain = site.workload.path().join("plain");
    fs::write(&plain, "in the way").or_fail("write a file")?;
    let blocked = site.shim().env("SDS_SHIM_WORKLOAD_API", at(&plain.join("agent.sock")));
    let open = with_api(&site).env("SDS_SHIM_WORKLOAD_API_UIDS", "2000");
    for (shim, told, is_good) in [
        (blocked, "plain: Not a directory".to_owned(), false),
        (
            open,
            format!("API      {}, for our own user, 2000: each of them gets the private key", socket(&site).display()),
            true,
        ),
    ] {
        let mut shim = Logged(shim.arg("check").start()?);
        assert_eq!(shim.wait_exit().await?.success(), is_good);
        assert!(shim.log().contains(&told), "{told:?} is not told");
    }
    Ok(())
}
