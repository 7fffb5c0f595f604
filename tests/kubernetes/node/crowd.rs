//! Many pods on one node, whose shims are all of one user.

use std::{collections::BTreeMap, time::Instant};

use testkit::{Failure, OrFail, node::KUBELET};

use super::mesh::{Mesh, SLEEP, address, is_ready, metrics_at};

const PODS: usize = 50;
/// What Envoy and shim of a pod have of inotify together, and what others of their user may have besides.
const INSTANCES: [usize; 2] = [3, 32];

/// As many as this machine lets one user have: an Envoy without an inotify instance ends with a crash.
fn possible() -> Result<usize, Failure> {
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").or_fail("read the limit")?;
    let most = most.trim().parse::<usize>().or_fail("read the limit of inotify instances")?;
    let [each, others] = INSTANCES;
    let pods = (most.saturating_sub(others) / each).min(PODS);
    if pods < PODS {
        eprintln!("NOT TESTED: {PODS} pods of one user, but {pods}: fs.inotify.max_user_instances is {most} here");
    }
    Ok(pods)
}

/// Some kernels count secret memory for all processes of a user together.
pub(crate) async fn many_pods_have_their_keys_in_secret_memory(mesh: &Mesh) -> testkit::Result {
    let (wanted, begun) = (possible()?, Instant::now());
    let scale = async |pods: usize| {
        let replicas = format!("--replicas={pods}");
        mesh.cluster.kubectl(&["scale", "deployment", SLEEP.1, "-n", SLEEP.0, &replicas]).await
    };
    scale(wanted).await?;
    let listed = async || {
        let mut pods = mesh.cluster.get(&["pods", "-n", SLEEP.0, "-l", "app=sleep"]).await?;
        Ok::<_, Failure>(pods["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    let look =
        async || Ok(Some(listed().await?).filter(|pods| pods.iter().filter(|pod| is_ready(pod)).count() == wanted));
    let (pods, _) = mesh.eventually(&format!("{wanted} pods ready"), 3 * KUBELET, look).await?;
    let mut levels = BTreeMap::<_, usize>::new();
    for pod in &pods {
        let metrics = metrics_at(address(pod)?).await?;
        let level = metrics.lines().find(|line| line.starts_with("sds_shim_memory_protection_level "));
        *levels.entry(level.unwrap_or_default().to_owned()).or_default() += 1;
    }
    println!("{wanted} pods on a node: ready after {:.1?}; {levels:?}", begun.elapsed());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").or_fail("read the kernel's version")?;
    println!("  with Linux {}", kernel.trim());
    assert_eq!(levels.len(), 1, "some keep their keys less well: {levels:?}");
    scale(1).await?;
    let look = async || Ok((listed().await?.len() == 1).then_some(()));
    mesh.eventually("one pod again", KUBELET, look).await.map(drop)
}
