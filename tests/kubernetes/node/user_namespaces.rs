//! Pods with users of their own (`hostUsers: false`): no process of another pod is of the same user, so nobody else's
//! secret memory counts for theirs.

use std::{fs, time::Instant};

use testkit::{Failure, OrFail, node::KUBELET};

use super::{
    crash::crash,
    mesh::{ENVOY, HTTPBIN, Mesh, Of, SHIM, SLEEP, is_alone, is_ready, restarts},
};

/// What users' ids are in a pod, of a user of the node: the first one, and how many.
type Range = (u32, u32);

pub(crate) async fn pods_with_users_of_their_own_have_the_mesh(mesh: &Mesh) -> testkit::Result {
    if !has_id_mapped_volumes()? {
        return Ok(());
    }
    let before = level(&mesh.metrics(HTTPBIN).await?)?.to_owned();
    let begun = Instant::now();
    for of in [HTTPBIN, SLEEP] {
        host_users(mesh, of, false).await?;
    }
    let ready = begun.elapsed();
    let mut ranges = Vec::new();
    for of in [HTTPBIN, SLEEP] {
        let shim = users_of(mesh, of, SHIM).await?;
        assert_eq!(shim, users_of(mesh, of, ENVOY).await?, "the sidecars of {} share no users", of.1);
        assert_eq!(level(&mesh.metrics(of).await?)?, before, "{}", of.1);
        assert_eq!(shim.1, 65_536, "users of {}", of.1);
        ranges.push(shim);
    }
    println!("pods with users of their own: ready after {ready:.1?}, user 0 is {ranges:?} of the node; {before}");
    ranges.sort_unstable();
    assert!(ranges[0].0 > 0 && ranges[0].0 + ranges[0].1 <= ranges[1].0, "pods share users: {ranges:?}");

    calls_are_answered(mesh).await?;
    let certificate = mesh.status(HTTPBIN).await?["resources"].clone();
    mesh.shim(HTTPBIN, &["renew"]).await?;
    assert_ne!(mesh.status(HTTPBIN).await?["resources"], certificate, "not renewed");
    a_crash_is_survived(mesh).await?;
    calls_are_answered(mesh).await?;
    for of in [HTTPBIN, SLEEP] {
        host_users(mesh, of, true).await?;
    }
    Ok(())
}

/// kubelet maps the users of a pod's volumes, and those in memory can be since Linux 6.3.
fn has_id_mapped_volumes() -> Result<bool, Failure> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").or_fail("read the kernel's version")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let has = (numbers.next(), numbers.next()) >= (Some(6), Some(3));
    if !has {
        eprintln!("NOT TESTED: hostUsers: false takes Linux 6.3, and this is {release}");
    }
    Ok(has)
}

fn level(metrics: &str) -> Result<&str, Failure> {
    let line = metrics.lines().find(|line| line.starts_with("sds_shim_memory_protection_level "));
    line.ok_or_else(|| Failure::new(format!("no level of protection in {metrics}")))
}

/// Replaces the pods of one of them by some that have users of their own, or not.
async fn host_users(mesh: &Mesh, of: Of, host_users: bool) -> testkit::Result {
    let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"hostUsers":{host_users}}}}}}}}}"#);
    mesh.cluster.kubectl(&["patch", "-n", of.0, "deployment", of.1, "-p", &patch]).await?;
    mesh.rolled_out(of).await?;
    mesh.eventually("one pod alone", KUBELET, async || is_alone(&mesh.cluster, of).await).await.map(drop)
}

/// Which users of the node a sidecar's are.
async fn users_of(mesh: &Mesh, of: Of, container: &str) -> Result<Range, Failure> {
    let map = format!("/proc/{}/uid_map", mesh.process(of, container).await?);
    let map = mesh.node.exec(&["cat", &map]).await?;
    let numbers: Vec<_> = map.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [0, first, count] = numbers[..] else { return Err(Failure::new(format!("more than one range: {map}"))) };
    Ok((first, count))
}

async fn calls_are_answered(mesh: &Mesh) -> testkit::Result {
    let pod = mesh.pod(SLEEP).await?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let look = async || Ok((mesh.call(name).await? == "200").then_some(()));
    // A Service may still name the pod that has just ended.
    mesh.eventually("a call is answered", KUBELET, look).await.map(drop)
}

async fn a_crash_is_survived(mesh: &Mesh) -> testkit::Result {
    let (pid, certificate) = (mesh.process(HTTPBIN, SHIM).await?, mesh.status(HTTPBIN).await?["resources"].clone());
    crash(mesh, &pid, 1).await?;
    assert_eq!(mesh.process(HTTPBIN, SHIM).await?, pid);
    assert_eq!(mesh.status(HTTPBIN).await?["resources"], certificate, "the certificate of before the crash");
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    assert_eq!(restarts(&mesh.pod(HTTPBIN).await?, SHIM), 0);
    Ok(())
}
