//! What happens to pods in their lives on a node: one node for all of it, with tokens of ten minutes.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::node::{Program, possible};

use super::{
    authority::a_ca_that_is_away_or_refuses_is_told,
    crash::a_crashed_shim_goes_on_in_its_container,
    crowd, helm_test, logs,
    mesh::{ENVOY, HTTPBIN, Mesh, SHIM, SLEEP, is_ready, restarts, terminated},
    network_policy::a_network_policy_leaves_the_sidecars_ports_alone_open,
    node_life::{
        a_killed_containerd_costs_nothing, a_rebooted_node_has_its_mesh_again, a_shim_without_memory_is_started_again,
        an_absent_containerd_costs_nothing,
    },
    prometheus, promises,
    traffic::{self, Traffic},
    upgrade, user_namespaces,
};
use crate::stage::CHART;

/// kubelet looks at the volumes of a pod after 60 to 90 s; this only bounds failures.
pub(crate) const SYNC: Duration = Duration::from_secs(240);

/// How long the CA is away, or refuses, besides what it takes for kubelet to tell.
const AWAY: Duration = Duration::from_secs(120);

/// Values of the chart for a mesh whose tokens and certificates are renewed while one looks.
pub(crate) const VALUES: [&str; 4] =
    ["developmentCA.verify=jwks", "ca.tokenSeconds=600", "env.SECRET_TTL=10m0s", "metrics.enabled=true"];

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes node` builds"]
async fn sidecars_live_through_what_a_kubelet_does() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let mesh_ = Mesh::start(&VALUES).await?;
    let mesh = &mesh_;
    play("promises", promises::pods_keep_what_the_chart_promises(mesh)).await?;
    play("redirection", promises::iptables_may_lead_through_envoy(mesh)).await?;
    play("profile", promises::the_shims_own_profile_is_enough(mesh)).await?;
    play("kubelet", a_restarted_kubelet_renews_all_tokens(mesh)).await?;
    play("config", a_changed_config_map_reaches_envoy(mesh)).await?;
    play("crash", a_crashed_shim_goes_on_in_its_container(mesh)).await?;
    play("shim", a_killed_shim_comes_back(mesh)).await?;
    play("envoy", a_killed_envoy_comes_back(mesh)).await?;
    play("users", user_namespaces::pods_with_users_of_their_own_have_the_mesh(mesh)).await?;
    play("memory", a_shim_without_memory_is_started_again(mesh)).await?;
    play("containerd", a_killed_containerd_costs_nothing(mesh)).await?;
    play("reboot", a_rebooted_node_has_its_mesh_again(mesh)).await?;
    play("ca", a_ca_that_is_away_or_refuses_is_told(mesh, if short() { Duration::ZERO } else { AWAY })).await?;
    play("test", helm_test::helm_test_tells_whether_the_mesh_works(mesh)).await?;
    play("upgrade", upgrade::chart_and_images_are_upgraded_under_traffic(mesh, !short())).await?;
    if !short() {
        play("policy", a_network_policy_leaves_the_sidecars_ports_alone_open(mesh)).await?;
        play("prometheus", prometheus::prometheus_scrapes_what_the_pod_monitor_names(mesh)).await?;
        play("absence", an_absent_containerd_costs_nothing(mesh)).await?;
        play("crowd", crowd::many_pods_have_their_keys_in_secret_memory(mesh)).await?;
    }
    play("end", a_pod_that_ends_has_its_mesh_to_the_end(mesh)).await?;
    play("memlock", little_lockable_memory_is_told(mesh)).await?;
    logs::hold_no_secrets(&mesh.node)?;
    mesh_.stop().await
}

/// Whether what takes kubelet minutes is left out, and what needs programs that take minutes to build.
pub(crate) fn short() -> bool {
    std::env::var_os("NODE_SHORT").is_some_and(|set| !set.is_empty())
}

/// Plays one of the scenes; `NODE_SCENES=crash,reboot` chooses some.
pub(crate) async fn play(name: &str, scene: impl Future<Output = testkit::Result>) -> testkit::Result {
    let chosen = std::env::var("NODE_SCENES").unwrap_or_default();
    if !chosen.is_empty() && !chosen.split(',').any(|chosen| chosen == name) {
        eprintln!("NOT TESTED: {name}, which is not in NODE_SCENES");
        return Ok(());
    }
    let begun = Instant::now();
    scene.await.map_err(|failure| failure.context(name))?;
    println!("({name}: {:.0?})", begun.elapsed());
    Ok(())
}

async fn a_restarted_kubelet_renews_all_tokens(mesh: &Mesh) -> testkit::Result {
    let before = [mesh.token(SLEEP).await?, mesh.token(HTTPBIN).await?];
    let known = mesh.status(HTTPBIN).await?["token_not_after"].clone();
    let traffic = Traffic::start(mesh).await?;
    let begun = Instant::now();
    mesh.node.kill(Program::Kubelet).await?;
    for (of, before) in [SLEEP, HTTPBIN].into_iter().zip(before) {
        let look = async || Ok((mesh.token(of).await? != before).then_some(()));
        mesh.eventually(&format!("another token for {}", of.1), SYNC, look).await?;
    }
    let tokens = begun.elapsed();
    // What has a readiness probe is not ready for a kubelet that has just started, until it has probed: nor is the CA, whose
    // Service refuses connections meanwhile.
    let look = async || Ok(mesh.shim(HTTPBIN, &["renew"]).await.ok());
    mesh.eventually("a renewal once the CA is ready again", SYNC, look).await?;
    assert_ne!(mesh.status(HTTPBIN).await?["token_not_after"], known, "the new token is not used");
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    let ready = begun.elapsed();
    let handshakes = traffic.stop().await?;
    println!("kubelet's restart: new tokens for all after {tokens:.1?}, pods ready after {ready:.1?},");
    println!("  {handshakes} handshakes, 0 failed");
    let pod = mesh.pod(HTTPBIN).await?;
    assert_eq!(restarts(&pod, SHIM) + restarts(&pod, ENVOY), 0, "sidecars were started again");
    Ok(())
}

async fn a_changed_config_map_reaches_envoy(mesh: &Mesh) -> testkit::Result {
    for (client, answered) in [("other", false), ("sleep", true)] {
        let allowed = format!("proxy.allowedClients={{spiffe://cluster.local/ns/foo/sa/{client}}}");
        let upgrade = ["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "--set", &allowed];
        mesh.cluster.helm(&upgrade).await?;
        let took = traffic::until(mesh, answered, SYNC).await?;
        println!("a changed ConfigMap reached Envoy after {took:.1?} (calls answered: {answered})");
    }
    Ok(())
}

/// Envoy keeps its certificate: who calls does not notice, but the pod is not ready until the shim has one again.
async fn a_killed_shim_comes_back(mesh: &Mesh) -> testkit::Result {
    let traffic = Traffic::start(mesh).await?;
    let (before, restarts_before) = (mesh.status(HTTPBIN).await?, restarts(&mesh.pod(HTTPBIN).await?, SHIM));
    mesh.kill(HTTPBIN, SHIM).await?;
    let again = |pod: &_| restarts(pod, SHIM) == restarts_before + 1;
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

async fn a_killed_envoy_comes_back(mesh: &Mesh) -> testkit::Result {
    let (before, begun) = (mesh.pod(HTTPBIN).await?, Instant::now());
    let again = |pod: &_| restarts(pod, ENVOY) == restarts(&before, ENVOY) + 1;
    mesh.kill(HTTPBIN, ENVOY).await?;
    mesh.until(HTTPBIN, "started again", again).await?;
    traffic::until(mesh, true, SYNC).await?;
    println!("a killed Envoy: handshakes again after {:.1?}", begun.elapsed());
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    assert_eq!(restarts(&mesh.pod(HTTPBIN).await?, SHIM), restarts(&before, SHIM), "the shim goes on");
    Ok(())
}

/// An application that takes its time to end calls others as before: its sidecars end after it.
async fn a_pod_that_ends_has_its_mesh_to_the_end(mesh: &Mesh) -> testkit::Result {
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
async fn little_lockable_memory_is_told(mesh: &Mesh) -> testkit::Result {
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
