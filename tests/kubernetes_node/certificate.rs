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

use crate::{
    kubernetes_stage::CHART,
    mesh::{Mesh, SLEEP},
};

const SIGNER: &str = "example.org/mesh";

/// Values of the chart for pods with a PodCertificate, beside those that it has. The anchors are in a volume of their own:
/// one with a PodCertificate stands still for good once that is refused.
fn values() -> Value {
    let certificate = json!({
        "signerName": SIGNER,
        "keyType": "ECDSAP256",
        "credentialBundlePath": "bundle.pem",
        "userAnnotations": { "example.org/team": "a" },
    });
    json!({
        "env": {
            "SDS_SHIM_SOURCE": "files",
            "SDS_SHIM_CREDENTIAL_BUNDLE": "/var/run/mesh/bundle.pem",
            "SDS_SHIM_TRUST_ANCHORS": "/var/run/secrets/istio/root-cert.pem",
        },
        "extraVolumes": [{ "name": "mesh", "projected": { "sources": [{ "podCertificate": certificate }] } }],
        "extraVolumeMounts": [{ "name": "mesh", "mountPath": "/var/run/mesh", "readOnly": true }],
    })
}

pub(crate) async fn a_pod_certificate_is_served_and_a_refused_one_is_told(mesh: &Mesh) -> Result<(), Failure> {
    let path = mesh.cluster.path().join("certificate.json");
    std::fs::write(&path, values().to_string()).or_fail("write the values")?;
    let path = path.display().to_string();
    mesh.cluster
        .helm(&["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "-f", &path])
        .await?;
    mesh.deploy(SLEEP, "/var/run/mesh").await?;

    let begun = Instant::now();
    let request = request(mesh).await?;
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
    let request = self::request(mesh).await?;
    let condition = json!({
        "type": "Denied",
        "status": "True",
        "reason": "Policy",
        "message": "not for this pod",
        "lastTransitionTime": rfc3339(now()),
    });
    answer(mesh, &request, &json!({ "conditions": [condition] })).await?;
    println!("a refused PodCertificate: {}", event(mesh, "FailedMount").await?);
    mesh.remove(SLEEP).await
}

/// The request that nobody has answered yet.
async fn request(mesh: &Mesh) -> Result<Value, Failure> {
    let look = async || {
        let mut all = mesh.cluster.get(&["podcertificaterequests", "-n", SLEEP.0]).await?;
        let open = |one: &&mut Value| one["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
        Ok(all["items"].as_array_mut().into_iter().flatten().find(open).map(Value::take))
    };
    mesh.eventually("a request of kubelet's for a certificate", KUBELET, look).await.map(|(request, _)| request)
}

/// What a signer says to it: a certificate of the mesh's CA for the pod's service account.
fn issue(mesh: &Mesh, request: &Value) -> Result<Value, Failure> {
    let spec = &request["spec"];
    let text = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    let stub = base64::decode_block(&text("stubPKCS10Request")).or_fail("decode the request")?;
    let key = X509Req::from_der(&stub).and_then(|stub| stub.public_key()).or_fail("read the request")?;
    let id = format!("spiffe://cluster.local/ns/{}/sa/{}", SLEEP.0, text("serviceAccountName"));
    let hour = 3600;
    let leaf = Leaf { not_before: -60, not_after: 2 * hour, ..Leaf::workload(&id, std::time::Duration::ZERO) };
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
        "beginRefreshAt": rfc3339(begin + hour),
        "notAfter": rfc3339(end),
    }))
}

async fn answer(mesh: &Mesh, request: &Value, status: &Value) -> Result<(), Failure> {
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    let patch = json!({ "status": status }).to_string();
    let words =
        ["patch", "podcertificaterequest", name, "-n", SLEEP.0, "--subresource=status", "--type=merge", "-p", &patch];
    mesh.cluster.kubectl(&words).await.map(drop)
}

/// What the last event of this kind says, once there is one of a refusal.
async fn event(mesh: &Mesh, reason: &str) -> Result<String, Failure> {
    let reason = format!("reason={reason}");
    let look = async || {
        let events = mesh.cluster.get(&["events", "-n", SLEEP.0, "--field-selector", &reason]).await?;
        let mut told = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
        Ok(told.find(|text| text.to_lowercase().contains("denied")).map(str::to_owned))
    };
    mesh.eventually("an event that tells of a refusal", KUBELET, look).await.map(|(told, _)| told)
}
