//! The shim crashes in its container: nobody but its log, its status and its metrics may tell.

use std::time::Instant;

use testkit::{confined::helper, node::KUBELET};

use super::{
    mesh::{HTTPBIN, Mesh, SHIM, is_ready, status_of},
    traffic::Traffic,
};

const CRASHES: usize = 3;

pub(crate) async fn a_crashed_shim_goes_on_in_its_container(mesh: &Mesh) -> testkit::Result {
    // A scene before this one may have had its containers started anew.
    mesh.until(HTTPBIN, "ready", is_ready).await?;
    let (before, pid) = (mesh.pod(HTTPBIN).await?, mesh.process(HTTPBIN, SHIM).await?);
    let (traffic, begun) = (Traffic::start(mesh).await?, Instant::now());
    for number in 1..=CRASHES {
        crash(mesh, &pid, number).await?;
        mesh.shim(HTTPBIN, &["wait", "--timeout", "60s"]).await?;
    }
    let handshakes = traffic.stop().await?;
    println!("{CRASHES} crashes of a shim in {:.1?}: {handshakes} handshakes, 0 failed", begun.elapsed());

    assert_eq!(mesh.process(HTTPBIN, SHIM).await?, pid);
    let after = mesh.pod(HTTPBIN).await?;
    for what in ["containerID", "restartCount", "state", "started"] {
        assert_eq!(status_of(&after, SHIM)[what], status_of(&before, SHIM)[what], "{what}");
    }
    assert_eq!(after["status"]["conditions"], before["status"]["conditions"], "the pod was not ready for a time");
    let log = mesh.cluster.kubectl(&["logs", "-n", HTTPBIN.0, "deployment/httpbin", "-c", SHIM]).await?;
    assert_eq!(log.matches("restarted in place").count(), CRASHES, "{log}");
    assert!(mesh.shim(HTTPBIN, &["status"]).await?.contains("crashed with SIGSEGV"));
    Ok(())
}

/// Crashes httpbin's shim, the process `pid`, and waits until its metrics count so many crashes.
pub(crate) async fn crash(mesh: &Mesh, pid: &str, number: usize) -> testkit::Result {
    mesh.node.exec(&[&helper("breaker")?.display().to_string(), pid, "crash"]).await?;
    let counted = format!("\nsds_shim_successors_total {number}\n");
    // Until the successor listens, who asks for metrics is refused.
    let look = async || Ok(mesh.metrics(HTTPBIN).await.ok().filter(|told| told.contains(&counted)));
    mesh.eventually(&format!("crash {number} in the metrics"), KUBELET, look).await.map(drop)
}
