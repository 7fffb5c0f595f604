//! What happens to pods in their lives on a node: one node for all of it, with tokens of ten minutes.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{
    Failure,
    node::{Program, possible},
};

use crate::{
    certificate::a_pod_certificate_is_served_and_a_refused_one_is_told,
    mesh::{ENVOY, HTTPBIN, Mesh, SHIM, SLEEP, is_ready, restarts, terminated},
    traffic::{self, Traffic},
};

/// kubelet looks at the volumes of a pod after 60 to 90 s; this only bounds failures.
const SYNC: Duration = Duration::from_secs(240);

/// A token of 600 s is renewed after 480 s, at the next look; the same.
const TOKEN: Duration = Duration::from_secs(900);

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes node` builds"]
async fn sidecars_live_through_what_a_kubelet_does() -> Result<(), Failure> {
    if !possible() {
        return Ok(());
    }
    let values = ["developmentCA.verify=jwks", "ca.tokenSeconds=600", "env.SECRET_TTL=10m0s"];
    let mesh = Mesh::start(&values).await?;
    let since = a_restarted_kubelet_renews_all_tokens(&mesh).await?;
    a_changed_config_map_reaches_envoy(&mesh).await?;
    a_killed_shim_comes_back(&mesh).await?;
    a_killed_envoy_comes_back(&mesh).await?;
    a_pod_that_ends_has_its_mesh_to_the_end(&mesh).await?;
    little_lockable_memory_is_told(&mesh).await?;
    a_pod_certificate_is_served_and_a_refused_one_is_told(&mesh).await?;
    if std::env::var_os("NODE_SHORT").is_some_and(|set| !set.is_empty()) {
        eprintln!("NOT TESTED: that kubelet renews a token, which takes it eight minutes, because NODE_SHORT is set");
    } else {
        kubelet_renews_a_token_and_it_is_used(&mesh, since).await?;
    }
    mesh.stop().await
}

/// When its new token was made.
async fn a_restarted_kubelet_renews_all_tokens(mesh: &Mesh) -> Result<Instant, Failure> {
    let before = [mesh.token(SLEEP).await?, mesh.token(HTTPBIN).await?];
    let traffic = Traffic::start(mesh).await?;
    let begun = Instant::now();
    mesh.node.kill(Program::Kubelet).await?;
    for (of, before) in [SLEEP, HTTPBIN].into_iter().zip(before) {
        let look = async || Ok((mesh.token(of).await? != before).then_some(()));
        mesh.eventually(&format!("another token for {}", of.1), SYNC, look).await?;
    }
    let tokens = begun.elapsed();
    mesh.shim(HTTPBIN, &["renew"]).await?;
    // What has a readiness probe is not ready for a kubelet that has just started, until it has probed.
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    let ready = begun.elapsed();
    let handshakes = traffic.stop().await?;
    println!("kubelet's restart: new tokens for all after {tokens:.1?}, pods ready after {ready:.1?},");
    println!("  {handshakes} handshakes, 0 failed");
    let pod = mesh.pod(HTTPBIN).await?;
    assert_eq!(restarts(&pod, SHIM) + restarts(&pod, ENVOY), 0, "sidecars were started again");
    Ok(begun)
}

async fn a_changed_config_map_reaches_envoy(mesh: &Mesh) -> Result<(), Failure> {
    for (client, answered) in [("other", false), ("sleep", true)] {
        let allowed = format!("proxy.allowedClients={{spiffe://cluster.local/ns/foo/sa/{client}}}");
        let chart = crate::kubernetes_stage::CHART;
        let upgrade = ["upgrade", "sds-shim", chart, "-n", "sds-shim", "--reset-then-reuse-values", "--set", &allowed];
        mesh.cluster.helm(&upgrade).await?;
        let took = traffic::until(mesh, answered, SYNC).await?;
        println!("a changed ConfigMap reached Envoy after {took:.1?} (calls answered: {answered})");
    }
    Ok(())
}

/// Envoy keeps its certificate: who calls does not notice, but the pod is not ready until the shim has one again.
async fn a_killed_shim_comes_back(mesh: &Mesh) -> Result<(), Failure> {
    let traffic = Traffic::start(mesh).await?;
    let before = mesh.status(HTTPBIN).await?;
    mesh.kill(HTTPBIN, SHIM).await?;
    let again = |pod: &_| restarts(pod, SHIM) == 1;
    let seen = mesh.until(HTTPBIN, "started again", again).await?;
    let ready = mesh.until(HTTPBIN, "ready", is_ready).await?;
    let handshakes = traffic.stop().await?;
    println!(
        "a killed shim: restarted after {seen:.1?}, ready after {ready:.1?} more, {handshakes} handshakes, 0 failed"
    );
    assert_ne!(mesh.status(HTTPBIN).await?["resources"], before["resources"], "a new certificate");
    assert_eq!(restarts(&mesh.pod(HTTPBIN).await?, ENVOY), 0);
    Ok(())
}

async fn a_killed_envoy_comes_back(mesh: &Mesh) -> Result<(), Failure> {
    let begun = Instant::now();
    mesh.kill(HTTPBIN, ENVOY).await?;
    mesh.until(HTTPBIN, "started again", |pod| restarts(pod, ENVOY) == 1).await?;
    traffic::until(mesh, true, SYNC).await?;
    println!("a killed Envoy: handshakes again after {:.1?}", begun.elapsed());
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    assert_eq!(restarts(&mesh.pod(HTTPBIN).await?, SHIM), 1, "the shim goes on");
    Ok(())
}

/// An application that takes its time to end calls others as before: its sidecars end after it.
async fn a_pod_that_ends_has_its_mesh_to_the_end(mesh: &Mesh) -> Result<(), Failure> {
    let patch = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":20}}}}"#;
    mesh.cluster.kubectl(&["patch", "-n", SLEEP.0, "deployment", SLEEP.1, "-p", patch]).await?;
    mesh.rolled_out(SLEEP).await?;
    let pods = ["get", "pods", "-n", SLEEP.0, "-l", "app=sleep", "--field-selector=status.phase=Running"];
    let running = mesh
        .cluster
        .kubectl(
            &[
                &pods[..],
                &[
                    "-o",
                    "jsonpath={range .items[*]}{.metadata.name} {.spec.terminationGracePeriodSeconds}{\"\\n\"}{end}",
                ],
            ]
            .concat(),
        )
        .await?;
    let pod = running.lines().find_map(|line| line.strip_suffix(" 20")).unwrap_or_default().to_owned();
    mesh.cluster.kubectl(&["delete", "deployment", SLEEP.1, "-n", SLEEP.0]).await?;
    let marked = ["wait", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=280s"];
    mesh.cluster.kubectl(&[&marked[..], &["-n", SLEEP.0, "pod", &pod]].concat()).await?;
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        let code = mesh.call(&pod).await?;
        assert_eq!(code, "200", "call {calls} after {:?}", begun.elapsed());
        calls += 1;
    }
    let exec = ["exec", "-n", SLEEP.0, &pod, "-c", SHIM, "--", "sds-shim", "renew"];
    mesh.cluster.kubectl(&exec).await?;
    mesh.cluster.kubectl(&["wait", "--for=delete", "--timeout=280s", "-n", SLEEP.0, "pod", &pod]).await?;
    println!(
        "a pod that ends: {calls} calls while it did, 0 failed, and a renewal; gone after {:.1?}",
        begun.elapsed()
    );
    Ok(())
}

/// A containerd that lets containers lock 64 KiB, as it does where nobody gives its unit more. What a container may lock is
/// what containerd could when the pod began.
async fn little_lockable_memory_is_told(mesh: &Mesh) -> Result<(), Failure> {
    mesh.node.limit_locked_memory(64).await?;
    mesh.deploy(SLEEP, SHIM).await?;
    let ended = |pod: &Value| terminated(pod, SHIM)["exitCode"] == 71;
    mesh.until(SLEEP, "ended for want of memory", ended).await?;
    let told = terminated(&mesh.pod(SLEEP).await?, SHIM)["message"].clone();
    println!("64 KiB of lockable memory: {told}");
    assert!(told.to_string().contains("LimitMEMLOCK=) is 64 KiB: raise it to at least"), "{told}");
    mesh.node.limit_locked_memory(8192).await?;
    mesh.cluster.kubectl(&["delete", "pod", "-l", "app=sleep", "-n", SLEEP.0]).await?;
    mesh.rolled_out(SLEEP).await?;
    mesh.remove(SLEEP).await
}

async fn kubelet_renews_a_token_and_it_is_used(mesh: &Mesh, since: Instant) -> Result<(), Failure> {
    let before = mesh.token(HTTPBIN).await?;
    let look = async || Ok((mesh.token(HTTPBIN).await? != before).then_some(()));
    mesh.eventually("another token, of 600 s", TOKEN, look).await?;
    let renewed = since.elapsed();
    let known = mesh.status(HTTPBIN).await?["token_not_after"].clone();
    mesh.shim(HTTPBIN, &["renew"]).await?;
    let used = mesh.status(HTTPBIN).await?["token_not_after"].clone();
    println!("a token of 600 s was renewed after {renewed:.1?}, and used: it ends {used}, the one before {known}");
    assert_ne!(used, known);
    Ok(())
}
