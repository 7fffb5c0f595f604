//! Pods, and what becomes of them at an API server with the chart.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Failure, kubernetes::Cluster};
use tokio::time::{Instant, sleep};

/// How long a changed policy may take to be in force: it only bounds failures.
pub(crate) const IN_FORCE: Duration = Duration::from_secs(60);
pub(crate) const POLL: Duration = Duration::from_millis(200);

/// Without what only the API server may set.
pub(crate) fn cleaned(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.retain(|name, _| ["name", "namespace", "labels", "annotations"].contains(&name.as_str()));
    }
    pod["status"] = json!({});
    pod
}

/// Nearly all that can be chosen, chosen otherwise than by default.
pub(crate) fn unusual() -> Value {
    json!({
        "namespaces": ["foo"],
        "trustDomain": "example.org",
        "mutualTLS": { "mode": "PERMISSIVE", "networkPolicy": true },
        "ca": {
            "address": "ca.example.org:443,10.0.0.1:15012", "serverName": "ca.example.org", "audience": "other",
            "tokenSeconds": 3600,
            "root": { "source": "clusterTrustBundle", "clusterTrustBundle": { "signerName": "example.org/mesh" } },
        },
        "image": { "repository": "example.org/shim", "digest": format!("sha256:{}", "a".repeat(64)) },
        "env": { "CA_HEADER_X": "\"quoted\" \\ 'text' <&> é", "WORKLOAD_IDENTITY_SOCKET_FILE": "other" },
        "extraVolumes": extra_volumes(),
        "extraVolumeMounts": extra_mounts(),
        "securityContext": {
            "runAsUser": null, "runAsGroup": null,
            "seccompProfile": { "type": "Localhost", "localhostProfile": "sds-shim.json" },
        },
        "probes": { "startup": { "enabled": false }, "readiness": { "enabled": false } },
        "proxy": {
            "bindAddress": "::",
            "allowedClients": ["spiffe://example.org/ns/foo/*"],
            "outbound": [
                { "service": "a", "namespace": "foo", "serviceAccount": "a", "port": 80 },
                { "service": "a", "namespace": "foo", "serviceAccount": "a", "port": 81, "address": "10.0.0.2" },
            ],
        },
        "metrics": { "enabled": true },
        "dashboard": { "enabled": true },
    })
}

/// What the shim's variables may name, in each of the forms that values of fields have.
pub(crate) fn extra_volumes() -> Value {
    let item = json!({ "key": "trust-domain", "path": "trust-domain", "mode": 288 });
    let token = json!({ "serviceAccountToken": { "audience": "a", "expirationSeconds": 3600, "path": "token" } });
    let certificate = json!({ "podCertificate": {
        "signerName": "example.org/mesh", "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem",
        "userAnnotations": { "example.org/a": "b", "example.org/number": "1" },
    } });
    json!([
        { "name": "certificate", "projected": { "defaultMode": 420, "sources": [certificate] } },
        { "name": "mesh", "configMap": { "name": "mesh", "defaultMode": 420, "optional": true, "items": [item] } },
        { "name": "more", "csi": { "driver": "csi.example.org", "volumeAttributes": { "example.org/a": "b" } } },
        { "name": "both", "projected": { "defaultMode": 420, "sources": [token] } },
        { "name": "output", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ])
}

pub(crate) fn extra_mounts() -> Value {
    json!([
        { "name": "mesh", "mountPath": "/etc/mesh", "readOnly": true },
        { "name": "output", "mountPath": "/var/run/certificates" },
    ])
}

/// A pod that the restricted Pod Security Standard allows.
pub(crate) fn pod(metadata: Value, spec: Value) -> Value {
    let container = json!({
        "name": "app", "image": "app",
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
    });
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "app", "namespace": "foo" },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [container],
        },
    });
    for (part, changes) in [("metadata", metadata), ("spec", spec)] {
        for (name, value) in changes.as_object().into_iter().flatten() {
            pod[part][name] = value.clone();
        }
    }
    pod
}

/// What the API server would make of a pod, as soon as that is as expected.
pub(crate) async fn made_so(
    cluster: &Cluster,
    pod: &Value,
    expected: impl Fn(&Value) -> bool,
) -> Result<Value, Failure> {
    let deadline = Instant::now() + IN_FORCE;
    loop {
        match cluster.made(pod).await {
            Ok(made) if expected(&made) => return Ok(made),
            made if Instant::now() > deadline => {
                return Err(cluster.explain(Failure::new(format!("the policy is not in force: {made:?}"))));
            }
            // Nobody tells when a policy is in force.
            _ => sleep(POLL).await,
        }
    }
}

pub(crate) fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str()).collect()
}

pub(crate) fn sidecar(pod: &Value, index: usize) -> &Value {
    &pod["spec"]["initContainers"][index]
}

pub(crate) fn bootstrap(pod: &Value) -> Option<Value> {
    serde_json::from_str(sidecar(pod, 1)["args"][1].as_str()?).ok()
}

pub(crate) fn port(pod: &Value) -> Option<u64> {
    let configuration = bootstrap(pod)?;
    let clusters = configuration["static_resources"]["clusters"].as_array()?;
    let application = clusters.iter().find(|cluster| cluster["name"] == "application")?;
    let endpoint = &application["load_assignment"]["endpoints"][0];
    endpoint["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"].as_u64()
}

pub(crate) async fn namespaces(cluster: &Cluster) -> testkit::Result {
    for namespace in ["foo", "bar"] {
        cluster.kubectl(&["create", "namespace", namespace]).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        cluster.kubectl(&["label", "namespace", namespace, label]).await?;
        cluster.kubectl(&["wait", "--for=create", "-n", namespace, "sa/default"]).await?;
    }
    Ok(())
}
