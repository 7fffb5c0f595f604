//! PodCertificates and ClusterTrustBundles of pods that run: kubelet brings others, or stops to.

use std::time::{Duration, Instant};

use openssl::x509::X509;
use testkit::{
    Failure, OrFail,
    development_ca::{Leaf, Pki},
    node::{KUBELET, Program},
};

use super::{
    certificate::{answer, deny, event, issue, prepare, request, trust},
    life::SYNC,
    mesh::{ENVOY, HTTPBIN, Mesh, SHIM, restarts},
    traffic::{self, Traffic, presented, serial},
};

/// A refresh begins 5 minutes after the certificate was issued, up to 5 later, and then waits for kubelet's next two looks.
const REFRESH: Duration = Duration::from_secs(1200);

/// Answers the next request for a certificate; the serial number of what was issued, and how long kubelet took to ask.
async fn sign(mesh: &Mesh) -> Result<(String, Duration), Failure> {
    let begun = Instant::now();
    let request = request(mesh, HTTPBIN).await?;
    let asked = begun.elapsed();
    let status = issue(mesh, &request)?;
    answer(mesh, &request, &status).await?;
    let chain = status["certificateChain"].as_str().unwrap_or_default();
    let certificate = X509::from_pem(chain.as_bytes()).or_fail("read what was issued")?;
    Ok((serial(&certificate)?, asked))
}

/// Waits until Envoy presents this certificate.
async fn arrives(mesh: &Mesh, serial: &str, bound: Duration) -> Result<Duration, Failure> {
    let look = async || Ok((presented(mesh).await? == serial).then_some(()));
    mesh.eventually(&format!("Envoy with certificate {serial}"), bound, look).await.map(|((), took)| took)
}

/// httpbin with a PodCertificate; a restarted kubelet asks for another one, as it does for all pods.
pub(crate) async fn a_pod_certificate_is_renewed_under_traffic(mesh: &Mesh) -> testkit::Result {
    prepare(mesh).await?;
    mesh.remove(HTTPBIN).await?;
    mesh.deploy(HTTPBIN, "/var/run/mesh").await?;
    let (first, _) = sign(mesh).await?;
    mesh.rolled_out(HTTPBIN).await?;
    arrives(mesh, &first, KUBELET).await?;

    let traffic = Traffic::start(mesh).await?;
    mesh.node.kill(Program::Kubelet).await?;
    let (second, asked) = sign(mesh).await?;
    let took = arrives(mesh, &second, SYNC).await?;
    let handshakes = traffic.stop().await?;
    println!(
        "a PodCertificate anew after kubelet's restart: asked for after {asked:.1?}, in Envoy {took:.1?} after its issue,"
    );
    println!("  {handshakes} handshakes, 0 failed");
    let pod = mesh.pod(HTTPBIN).await?;
    assert_eq!(restarts(&pod, SHIM) + restarts(&pod, ENVOY), 0, "sidecars were started again");
    Ok(())
}

/// Who has a certificate of another CA may call while its root is in the bundle.
pub(crate) async fn a_changed_trust_bundle_reaches_envoy(mesh: &Mesh, changes: &[bool]) -> testkit::Result {
    let (ours, other) = (mesh.client().1, Pki::new("another mesh"));
    let client = other.issue(&Leaf::workload("spiffe://cluster.local/ns/foo/sa/sleep", Duration::from_secs(3600)));
    for &answered in changes {
        let roots = [ours.clone(), other.root_pem()];
        trust(mesh, &roots[..1 + usize::from(answered)]).await?;
        let took = traffic::until_for(mesh, &client, answered, REFRESH).await?;
        println!("a changed ClusterTrustBundle reached Envoy after {took:.1?} (its clients answered: {answered})");
        traffic::until(mesh, true, SYNC).await?;
    }
    Ok(())
}

/// The refresh as it comes by itself.
pub(crate) async fn kubelet_refreshes_a_pod_certificate(mesh: &Mesh) -> testkit::Result {
    let (begun, before) = (Instant::now(), presented(mesh).await?);
    let traffic = Traffic::start(mesh).await?;
    let look = async || {
        let requests = mesh.cluster.get(&["podcertificaterequests", "-n", HTTPBIN.0]).await?;
        let mut requests = requests["items"].as_array().into_iter().flatten();
        let open = |one: &serde_json::Value| one["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
        Ok(requests.any(open).then_some(()))
    };
    mesh.eventually("a refresh of the certificate", REFRESH, look).await?;
    let asked = begun.elapsed();
    let (serial, _) = sign(mesh).await?;
    assert_ne!(serial, before);
    let took = arrives(mesh, &serial, SYNC).await?;
    let handshakes = traffic.stop().await?;
    println!("a refreshed PodCertificate: asked for after {asked:.1?} and more, in Envoy {took:.1?} after its issue,");
    println!("  {handshakes} handshakes, 0 failed");
    Ok(())
}

/// The signer refuses while the pod runs: it runs on with what it has, and its volume is never written again.
pub(crate) async fn a_refused_refresh_leaves_what_there_is(mesh: &Mesh) -> testkit::Result {
    let before = presented(mesh).await?;
    let traffic = Traffic::start(mesh).await?;
    mesh.node.kill(Program::Kubelet).await?;
    deny(mesh, &request(mesh, HTTPBIN).await?).await?;
    println!("a refused PodCertificate of a pod that runs: {}", event(mesh, HTTPBIN, "FailedMount").await?);
    println!("  and {}", event(mesh, HTTPBIN, "Denied").await?);
    let handshakes = traffic.stop().await?;
    println!("  {handshakes} handshakes, 0 failed");
    assert_eq!(presented(mesh).await?, before);
    Ok(())
}
