//! The CA is away, or refuses: what a pod that starts tells, and when it goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{Failure, node::KUBELET};

use super::{
    mesh::{ENVOY, HTTPBIN, Mesh, SHIM, SLEEP, is_ready, restarts, status_of},
    traffic::Traffic,
};
use crate::stage::CA;

const AUDIENCE: &str = "--audience=";

/// What the CA does to tokens: those for another audience than its own are refused.
async fn asks_for(mesh: &Mesh, audience: &str) -> testkit::Result {
    let deployment = mesh.cluster.get(&["deployment", CA, "-n", "sds-shim"]).await?;
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().cloned();
    let arguments: Vec<_> = arguments.unwrap_or_default().iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let place = arguments.iter().position(|argument| argument.starts_with(AUDIENCE)).unwrap_or_default();
    let path = format!("/spec/template/spec/containers/0/args/{place}");
    let patch = json!([{ "op": "replace", "path": path, "value": format!("{AUDIENCE}{audience}") }]).to_string();
    mesh.cluster.kubectl(&["patch", "deployment", CA, "-n", "sds-shim", "--type=json", "-p", &patch]).await?;
    let rolled_out = ["rollout", "status", "--timeout=280s", "-n", "sds-shim"];
    mesh.cluster.kubectl(&[&rolled_out[..], &["deployment", CA]].concat()).await.map(drop)
}

/// How many there are of the CA.
pub(crate) async fn has_replicas(mesh: &Mesh, replicas: usize) -> testkit::Result {
    let replicas = format!("--replicas={replicas}");
    mesh.cluster.kubectl(&["scale", "deployment", CA, "-n", "sds-shim", &replicas]).await.map(drop)
}

/// For `minutes`, new pods have nobody who certifies them: running ones do not notice, and `kubectl describe pod` says why
/// the new ones do not start.
pub(crate) async fn a_ca_that_is_away_or_refuses_is_told(mesh: &Mesh, wait: Duration) -> testkit::Result {
    let traffic = Traffic::start(mesh).await?;
    mesh.remove(SLEEP).await?;
    asks_for(mesh, "another").await?;
    mesh.deploy(SLEEP, SHIM).await?;
    println!("a CA that refuses: {}", described(mesh, "UNAUTHENTICATED").await?);
    has_replicas(mesh, 0).await?;
    println!("a CA that is away: {}", described(mesh, "cannot connect to").await?);
    tokio::time::sleep(wait).await;
    let pod = mesh.pod(SLEEP).await?;
    assert_eq!(restarts(&pod, SHIM), 0, "the shim waits, and is not started again");
    for container in [ENVOY, SLEEP.1] {
        assert!(status_of(&pod, container)["state"]["waiting"].is_object(), "{container} runs: {pod}");
    }

    has_replicas(mesh, 1).await?;
    asks_for(mesh, "istio-ca").await?;
    let begun = Instant::now();
    mesh.until(SLEEP, "ready", is_ready).await?;
    println!("  the CA is back after {wait:.0?} and more: the pod ready after {:.1?}", begun.elapsed());
    println!("  {} handshakes meanwhile with {}, 0 failed", traffic.stop().await?, HTTPBIN.1);
    Ok(())
}

/// The event that `kubectl describe pod` shows, with this in it.
async fn described(mesh: &Mesh, expected: &str) -> Result<String, Failure> {
    let look = async || {
        let told = mesh.cluster.kubectl(&["describe", "pod", "-n", SLEEP.0, "-l", "app=sleep"]).await?;
        let line = told.lines().find(|line| line.contains("Startup probe failed") && line.contains(expected));
        Ok(line.map(|line| line.trim().to_owned()))
    };
    mesh.eventually(&format!("{expected} in `kubectl describe pod`"), KUBELET, look).await.map(|(line, _)| line)
}
