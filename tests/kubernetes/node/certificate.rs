//! PodCertificates: kubelet makes the key and asks a signer of ours, and the shim serves what kubelet mounts.

use std::time::Instant;

use openssl::{
    base64,
    x509::{X509, X509Req},
};
use sds_shim::{
    clock::{now, rfc3339},
    identity::unix_seconds,
};
use serde_json::{Value, json};
use testkit::{Failure, OrFail, development_ca::Leaf, node::KUBELET};

use super::mesh::{Mesh, Of, SLEEP};

const SIGNER: &str = "example.org/mesh";
/// The ClusterTrustBundle with the anchors.
const BUNDLE: &str = "mesh-roots";

/// The API server wants a certificate to begin within 5 minutes from now, and its refresh twice that after its beginning.
const EARLY: i64 = 300;

/// Values of the chart for pods with a PodCertificate, beside those that it has. The anchors are in a volume of their own:
/// one with a PodCertificate stands still for good once that is refused.
fn values() -> Value {
    let certificate = json!({
        "signerName": SIGNER,
        "keyType": "ECDSAP256",
        "credentialBundlePath": "bundle.pem",
        "userAnnotations": { "example.org/team": "a" },
    });
    let anchors = json!({ "name": BUNDLE, "path": "roots.pem" });
    json!({
        "env": {
            "SDS_SHIM_SOURCE": "files",
            "SDS_SHIM_CREDENTIAL_BUNDLE": "/var/run/mesh/bundle.pem",
            "SDS_SHIM_TRUST_ANCHORS": "/var/run/roots/roots.pem",
            // Else an anchor that is gone from the bundle is served until what it has certified has ended.
            "SDS_SHIM_ROOT_GRACE": "0s",
        },
        "extraVolumes": [
            { "name": "mesh", "projected": { "sources": [{ "podCertificate": certificate }] } },
            { "name": "roots", "projected": { "sources": [{ "clusterTrustBundle": anchors }] } },
        ],
        "extraVolumeMounts": [
            { "name": "mesh", "mountPath": "/var/run/mesh", "readOnly": true },
            { "name": "roots", "mountPath": "/var/run/roots", "readOnly": true },
        ],
    })
}

pub(crate) async fn a_pod_certificate_is_served_and_a_refused_one_is_told(mesh: &Mesh) -> testkit::Result {
    mesh.remove(SLEEP).await?;
    mesh.deploy(SLEEP, "/var/run/mesh").await?;

    let begun = Instant::now();
    let request = request(mesh, SLEEP).await?;
    let asked = begun.elapsed();
    assert_eq!(request["spec"]["unverifiedUserAnnotations"]["example.org/team"], "a", "{request}");
    let status = issue(mesh, &request)?;
    answer(mesh, &request, &status).await?;
    mesh.rolled_out(SLEEP).await?;
    println!("a PodCertificate: asked for after {asked:.1?}, the pod ready after {:.1?}", begun.elapsed());
    assert_eq!(mesh.call(&format!("deployment/{}", SLEEP.1)).await?, "200");
    let bundle = mesh.shim(SLEEP, &["get", "default"]).await?;
    let issued = X509::stack_from_pem(status["certificateChain"].as_str().unwrap_or_default().as_bytes());
    let served = X509::stack_from_pem(bundle.as_bytes()).or_fail("read what is served")?;
    assert_eq!(
        served.first().map(|one| one.to_der().ok()),
        issued.or_fail("read it")?.first().map(|one| one.to_der().ok())
    );

    mesh.remove(SLEEP).await?;
    mesh.deploy(SLEEP, "/var/run/mesh").await?;
    let request = self::request(mesh, SLEEP).await?;
    deny(mesh, &request).await?;
    println!("a refused PodCertificate: {}", event(mesh, SLEEP, "FailedMount").await?);
    mesh.remove(SLEEP).await
}

/// PodCertificates for new pods, and anchors from a ClusterTrustBundle.
pub(crate) async fn prepare(mesh: &Mesh) -> testkit::Result {
    trust(mesh, &[mesh.client().1]).await?;
    mesh.upgrade(&values()).await
}

/// What the ClusterTrustBundle holds.
pub(crate) async fn trust(mesh: &Mesh, roots: &[String]) -> testkit::Result {
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "ClusterTrustBundle",
        "metadata": { "name": BUNDLE },
        "spec": { "trustBundle": roots.concat() },
    });
    mesh.cluster.kubectl_on(&object, &["apply", "-f", "-"]).await.map(drop)
}

/// The request for one of them that nobody has answered yet.
pub(crate) async fn request(mesh: &Mesh, of: Of) -> Result<Value, Failure> {
    let look = async || {
        let mut all = mesh.cluster.get(&["podcertificaterequests", "-n", of.0]).await?;
        let open = |one: &&mut Value| one["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
        Ok(all["items"].as_array_mut().into_iter().flatten().find(open).map(Value::take))
    };
    mesh.eventually("a request of kubelet's for a certificate", KUBELET, look).await.map(|(request, _)| request)
}

/// What a signer says to it: a certificate of the mesh's CA for the pod's service account.
pub(crate) fn issue(mesh: &Mesh, request: &Value) -> Result<Value, Failure> {
    let spec = &request["spec"];
    let text = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    let stub = base64::decode_block(&text("stubPKCS10Request")).or_fail("decode the request")?;
    let key = X509Req::from_der(&stub).and_then(|stub| stub.public_key()).or_fail("read the request")?;
    let namespace = request["metadata"]["namespace"].as_str().unwrap_or_default();
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{}", text("serviceAccountName"));
    // As early as the API server allows it, so that the refresh comes early as well.
    let leaf = Leaf { not_before: 10 - EARLY, not_after: 3600, ..Leaf::workload(&id, std::time::Duration::ZERO) };
    let key = key.public_key_to_pem().or_fail("write the key")?;
    let chain = mesh.certify(&leaf, &String::from_utf8_lossy(&key))?;
    let leaf = X509::from_pem(chain.as_bytes()).or_fail("read the certificate")?;
    let [begin, end] = [leaf.not_before(), leaf.not_after()].map(unix_seconds);
    let (begin, end) = (begin.or_fail("read its beginning")?, end.or_fail("read its end")?);
    let condition = json!({
        "type": "Issued",
        "status": "True",
        "reason": "Issued",
        "message": "here it is",
        "lastTransitionTime": rfc3339(now()),
    });
    Ok(json!({
        "conditions": [condition],
        "certificateChain": chain,
        "notBefore": rfc3339(begin),
        "beginRefreshAt": rfc3339(begin + 2 * EARLY),
        "notAfter": rfc3339(end),
    }))
}

/// Refuses it.
pub(crate) async fn deny(mesh: &Mesh, request: &Value) -> testkit::Result {
    let condition = json!({
        "type": "Denied",
        "status": "True",
        "reason": "Policy",
        "message": "not for this pod",
        "lastTransitionTime": rfc3339(now()),
    });
    answer(mesh, request, &json!({ "conditions": [condition] })).await
}

pub(crate) async fn answer(mesh: &Mesh, request: &Value, status: &Value) -> testkit::Result {
    let text = |name: &str| request["metadata"][name].as_str().unwrap_or_default();
    let patch = json!({ "status": status }).to_string();
    let (name, namespace) = (text("name"), text("namespace"));
    let words =
        ["patch", "podcertificaterequest", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", &patch];
    mesh.cluster.kubectl(&words).await.map(drop)
}

/// What the last event of this kind says, once there is one of a refusal.
pub(crate) async fn event(mesh: &Mesh, of: Of, reason: &str) -> Result<String, Failure> {
    let reason = format!("reason={reason}");
    let look = async || {
        let events = mesh.cluster.get(&["events", "-n", of.0, "--field-selector", &reason]).await?;
        let mut told = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
        Ok(told.find(|text| text.to_lowercase().contains("denied")).map(str::to_owned))
    };
    mesh.eventually("an event that tells of a refusal", KUBELET, look).await.map(|(told, _)| told)
}
