//! Every object that the chart can make, as the API server takes it: `make test-kubernetes`.

use std::fs;

use serde_json::{Value, json};
use testkit::{Failure, OrFail, kubernetes::Cluster};

const CHART: &str = "packaging/helm/sds-shim";
/// The pods of `helm test`, checked as well.
const TESTS_STRICTLY: &str = "helm get hooks sds-shim | kubectl apply --dry-run=server --validate=strict -f -";
/// What Helm last made, checked once more by the API server, which is to know each field.
const STRICTLY: &str = "helm get manifest sds-shim | kubectl apply --dry-run=server --validate=strict -f -";

/// Values, and how many objects they make.
fn combinations() -> Result<Vec<(Value, usize)>, Failure> {
    let root = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let bundle = |name: &str, signer: &str| json!({ "name": name, "signerName": signer });
    let source = |source: &str, name: &str, signer: &str| {
        json!({ "root": { "source": source, "pem": root,
        "clusterTrustBundle": bundle(name, signer) } })
    };
    let all = json!({ "metrics": { "enabled": true }, "podMonitor": { "enabled": true, "labels": { "a": "b" } },
        "prometheusRule": { "enabled": true, "labels": { "a": "b" } }, "dashboard": { "enabled": true } });
    let with = |mut values: Value, more: &Value| {
        if let (Some(values), Some(more)) = (values.as_object_mut(), more.as_object()) {
            values.extend(more.clone());
        }
        values
    };
    let mesh = json!({ "namespaces": ["foo", "bar"] });
    let istio = json!({ "mode": "istio", "namespaces": ["foo", "bar"] });
    Ok(vec![
        (json!({}), 0),
        (mesh.clone(), 6),
        (with(mesh.clone(), &all), 9),
        (with(mesh.clone(), &json!({ "mutualTLS": { "mode": "PERMISSIVE" } })), 6),
        (with(mesh.clone(), &json!({ "mutualTLS": { "networkPolicy": true } })), 8),
        (with(mesh.clone(), &more()), 6),
        (with(mesh.clone(), &json!({ "ca": source("pem", "", "") })), 6),
        (with(mesh.clone(), &json!({ "ca": source("clusterTrustBundle", "mesh", "") })), 6),
        (with(mesh.clone(), &json!({ "ca": source("clusterTrustBundle", "", "example.org/mesh") })), 6),
        (with(mesh.clone(), &json!({ "developmentCA": { "enabled": true } })), 11),
        (with(mesh.clone(), &json!({ "developmentCA": { "enabled": true, "verify": "jwks" } })), 11),
        (with(mesh, &json!({ "injection": "patch" })), 2),
        (istio.clone(), 3),
        (with(istio.clone(), &all), 6),
        (with(istio.clone(), &json!({ "istio": { "policy": false } })), 1),
        (with(istio, &json!({ "istio": { "peerAuthentication": true } })), 4),
    ])
}

/// What is there by default for nobody.
fn more() -> Value {
    json!({
        "trustDomainAliases": ["example.org"],
        "workloadAPI": { "enabled": true, "uids": [1000, 2000] },
        "extraVolumes": [
            { "name": "mesh", "configMap": { "name": "mesh", "optional": true } },
            { "name": "key", "secret": { "secretName": "key", "defaultMode": 288 } },
            { "name": "pod", "downwardAPI": { "items": [
                { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } },
            ] } },
            { "name": "bundle", "projected": { "sources": [
                { "clusterTrustBundle": { "name": "mesh", "path": "roots.pem", "optional": true } },
            ] } },
            { "name": "driver", "csi": { "driver": "csi.example.org", "volumeAttributes": { "example.org/a": "b" } } },
            { "name": "claim", "persistentVolumeClaim": { "claimName": "claim" } },
            { "name": "host", "hostPath": { "path": "/etc/mesh", "type": "Directory" } },
        ],
        "extraVolumeMounts": [{ "name": "mesh", "mountPath": "/etc/mesh", "readOnly": true, "subPath": "mesh" }],
        "proxy": { "bindAddress": "::", "probePaths": ["/healthz"] },
    })
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_api_server_takes_what_any_values_make_and_uninstalling_leaves_nothing() -> testkit::Result {
    let cluster = Cluster::start().await?;
    cluster.install_kinds().await?;
    for namespace in ["foo", "bar", "istio-system"] {
        cluster.restricted_namespace(namespace).await?;
    }
    let before = cluster.everything().await?;
    let combinations = combinations()?;
    for (values, count) in &combinations {
        let file = values_file(&cluster, values)?;
        let arguments = ["sds-shim", CHART, "-f", &file];
        let explain = |failure: Failure| failure.context(values);
        cluster.helm(&[&["install", "--dry-run=server"], &arguments[..]].concat()).await.map_err(explain)?;
        cluster.helm(&[&["install"], &arguments[..]].concat()).await.map_err(explain)?;
        made(&cluster, *count).await.map_err(explain)?;
        cluster.helm(&["uninstall", "sds-shim", "--wait"]).await?;
        assert_eq!(cluster.everything().await?, before, "{values}");
    }
    // From each to the next, as somebody would who tries all of them.
    for (values, count) in &combinations {
        let file = values_file(&cluster, values)?;
        let upgrade = ["upgrade", "--install", "--reset-values", "sds-shim", CHART, "-f", &file];
        cluster.helm(&upgrade).await.map_err(|failure| failure.context(values))?;
        made(&cluster, *count).await.map_err(|failure| failure.context(values))?;
    }
    cluster.helm(&["uninstall", "sds-shim", "--wait"]).await?;
    assert_eq!(cluster.everything().await?, before);
    cluster.stop().await
}

fn values_file(cluster: &Cluster, values: &Value) -> Result<String, Failure> {
    let file = cluster.path().join("values.json");
    fs::write(&file, values.to_string()).or_fail("write the values")?;
    Ok(file.display().to_string())
}

/// The release has so many objects, and the API server knows each of their fields.
async fn made(cluster: &Cluster, count: usize) -> testkit::Result {
    let manifest = cluster.helm(&["get", "manifest", "sds-shim"]).await?;
    let kinds: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    if kinds.len() != count {
        return Err(Failure::new(format!("{} objects, not {count}: {kinds:?}", kinds.len())));
    }
    if count == 0 {
        return Ok(());
    }
    // With a policy they are complete once that is in force.
    if manifest.contains("patch.yaml") {
        cluster.script(TESTS_STRICTLY).await?.success()?;
    }
    let told = cluster.script(STRICTLY).await?.success()?;
    match told.lines().filter(|line| line.ends_with("(server dry run)")).count() {
        checked if checked == count => Ok(()),
        checked => Err(Failure::new(format!("{checked} objects were checked, not {count}: {told}"))),
    }
}
