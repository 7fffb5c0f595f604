//! What happens to the node under its pods.

use std::time::Instant;

use testkit::node::{KUBELET, Program};

use super::{
    mesh::{ENVOY, HTTPBIN, Mesh, SHIM, SLEEP, address, is_ready, restarts, status_of, terminated},
    traffic::{self, Traffic},
};

/// containerd's containers run on without it.
pub(crate) async fn a_killed_containerd_costs_nothing(mesh: &Mesh) -> testkit::Result {
    let before = mesh.pod(HTTPBIN).await?;
    let (traffic, begun) = (Traffic::start(mesh).await?, Instant::now());
    mesh.node.kill(Program::Containerd).await?;
    // Probes by command fail as long as nobody starts their processes.
    let look = async || Ok(mesh.shim(HTTPBIN, &["renew"]).await.ok());
    let (_, renewed) = mesh.eventually("a renewal by a command in the container", KUBELET, look).await?;
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    let handshakes = traffic.stop().await?;
    println!(
        "a killed containerd: commands in containers again after {renewed:.1?}, all ready after {:.1?},",
        begun.elapsed()
    );
    println!("  {handshakes} handshakes, 0 failed");
    let after = mesh.pod(HTTPBIN).await?;
    for container in [SHIM, ENVOY] {
        assert_eq!(
            status_of(&after, container)["containerID"],
            status_of(&before, container)["containerID"],
            "{container}"
        );
    }
    Ok(())
}

/// Until kubelet says that its node is not ready, and longer.
pub(crate) async fn an_absent_containerd_costs_nothing(mesh: &Mesh) -> testkit::Result {
    let before = mesh.pod(HTTPBIN).await?;
    let (traffic, begun) = (Traffic::start(mesh).await?, Instant::now());
    mesh.node.hold(Program::Containerd).await?;
    let ready = async |expected: &str| {
        let nodes = mesh.cluster.get(&["nodes"]).await?;
        let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default();
        Ok((ready["status"] == expected).then(|| ready["message"].clone()))
    };
    let (told, seen) = mesh.eventually("a node that is not ready", KUBELET, async || ready("False").await).await?;
    let during = is_ready(&mesh.pod(HTTPBIN).await?);
    mesh.node.release(Program::Containerd).await?;
    mesh.eventually("a node that is ready", KUBELET, async || ready("True").await).await?;
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    // The CA is another pod that has to be ready again.
    let look = async || Ok(mesh.shim(HTTPBIN, &["renew"]).await.ok());
    mesh.eventually("a renewal once the CA is ready again", KUBELET, look).await?;
    let handshakes = traffic.stop().await?;
    println!("no containerd: the node not ready after {seen:.1?} ({told}), its pods then ready: {during};");
    println!("  all ready after {:.1?}, {handshakes} handshakes, 0 failed", begun.elapsed());
    let after = mesh.pod(HTTPBIN).await?;
    for container in [SHIM, ENVOY] {
        let ids = [&after, &before].map(|pod| status_of(pod, container)["containerID"].clone());
        assert_eq!(ids[0], ids[1], "{container}");
    }
    Ok(())
}

/// All containers end at once, what was in memory is gone, and containerd and kubelet start again.
pub(crate) async fn a_rebooted_node_has_its_mesh_again(mesh: &Mesh) -> testkit::Result {
    let before = [mesh.pod(SLEEP).await?, mesh.pod(HTTPBIN).await?];
    let begun = Instant::now();
    mesh.node.reboot().await?;
    for (of, before) in [SLEEP, HTTPBIN].into_iter().zip(&before) {
        let another = |pod: &_| status_of(pod, SHIM)["containerID"] != status_of(before, SHIM)["containerID"];
        mesh.until(of, "ready after the reboot", |pod| another(pod) && is_ready(pod)).await?;
    }
    let ready = begun.elapsed();
    traffic::until(mesh, true, KUBELET).await?;
    let after = mesh.pod(HTTPBIN).await?;
    println!("a node's reboot: pods ready after {ready:.1?}, handshakes after {:.1?};", begun.elapsed());
    println!("  httpbin had {:?} and has {:?}", address(&before[1])?, address(&after)?);
    assert_eq!(after["metadata"]["uid"], before[1]["metadata"]["uid"], "the pod is another");
    let look = async || Ok((mesh.call("deployment/sleep").await? == "200").then_some(()));
    mesh.eventually("a call of sleep", KUBELET, look).await?;
    println!("  a call from pod to pod after {:.1?}", begun.elapsed());
    Ok(())
}

/// Somebody else's memory in the shim's control group: the kernel ends the process that it may end first.
pub(crate) async fn a_shim_without_memory_is_started_again(mesh: &Mesh) -> testkit::Result {
    let (before, pid) = (restarts(&mesh.pod(HTTPBIN).await?, SHIM), mesh.process(HTTPBIN, SHIM).await?);
    let traffic = Traffic::start(mesh).await?;
    let eaten = mesh.node.exec(&["bash", "-c", EAT, "eat", &pid]).await?;
    let again = |pod: &_| restarts(pod, SHIM) == before + 1;
    let seen = mesh.until(HTTPBIN, "started again", again).await?;
    let ready = mesh.until(HTTPBIN, "ready", is_ready).await?;
    let handshakes = traffic.stop().await?;
    let ended = terminated(&mesh.pod(HTTPBIN).await?, SHIM);
    println!(
        "a shim out of memory ({eaten:?}): {} ({}), again after {seen:.1?}, ready after {ready:.1?} more,",
        ended["reason"], ended["exitCode"]
    );
    println!("  {handshakes} handshakes, 0 failed");
    assert_eq!((ended["reason"].as_str(), ended["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)));
    Ok(())
}

/// Fills the control group of process `$1` until the kernel ends one in it. tail keeps all of a line.
const EAT: &str = r#"
path=$(awk -F: '$2 ~ /(^|,)memory(,|$)/ { print "/sys/fs/cgroup/memory" $3 }' "/proc/$1/cgroup")
[ -n "$path" ] || path=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")
(echo $BASHPID >"$path/cgroup.procs"; head -c 64M /dev/zero | tail >/dev/null; true)
echo "$path"
"#;
