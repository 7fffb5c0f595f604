//! The volume of the Workload API, which the pods of applications that use it declare themselves.

use serde_json::{Value, json};
use testkit::kubernetes::Cluster;

use super::{CHART, SAMPLE, cleaned, made_so, names, namespaces, pod, port, sidecar};

const VOLUME: &str = "sds-shim-workload-api";
const VALUES: &str = "workloadAPI.enabled=true,workloadAPI.uids={1000}";

/// The pod of an application that speaks mutual TLS itself, as the manual has it, with these volumes beside the one.
fn documented(others: &[Value]) -> Value {
    let mut pod = pod(json!({}), json!({}));
    let memory = json!({ "name": VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
    pod["spec"]["volumes"] = others.iter().cloned().chain([memory]).collect();
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{ "name": VOLUME, "mountPath": "/run/spiffe" }]);
    container["env"] = json!([{ "name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///run/spiffe/agent.sock" }]);
    pod
}

/// The volume is there once, in memory, and the shim serves in it.
fn serves(pod: &Value) {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let found: Vec<_> = volumes.filter(|volume| volume["name"] == VOLUME).map(|volume| &volume["emptyDir"]).collect();
    assert_eq!(found, [&json!({ "medium": "Memory", "sizeLimit": "1Mi" })]);
    assert_eq!(names(pod, "initContainers"), ["sds-shim", "sds-shim-envoy"]);
    assert!(mounts(sidecar(pod, 0)) && !mounts(sidecar(pod, 1)), "{pod}");
    let variable = json!({ "name": "SDS_SHIM_WORKLOAD_API", "value": "unix:/run/spiffe/agent.sock" });
    assert!(sidecar(pod, 0)["env"].as_array().is_some_and(|set| set.contains(&variable)), "{pod}");
}

fn mounts(container: &Value) -> bool {
    let mount = json!({ "name": VOLUME, "mountPath": "/run/spiffe" });
    container["volumeMounts"].as_array().is_some_and(|mounts| mounts.contains(&mount))
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn pods_have_the_workload_apis_volume_once_whether_they_declare_it_or_not() -> testkit::Result {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    cluster.helm(&["install", "sds-shim", CHART, "-n", "default", "-f", SAMPLE, "--set", VALUES]).await?;
    // Without a token, nobody else gives the pod a volume.
    let bare = pod(json!({}), json!({ "automountServiceAccountToken": false }));
    serves(&made_so(&cluster, &bare, |pod| port(pod).is_some()).await?);
    let own = json!({ "name": "own", "emptyDir": {} });
    let spec = json!({ "volumes": [own] });
    let other = cluster.made(&pod(json!({}), spec)).await?;
    serves(&other);
    assert!(names(&other, "volumes").contains(&"own"));

    for others in [&[][..], &[own]] {
        let injected = cluster.made(&documented(others)).await?;
        serves(&injected);
        assert!(mounts(&injected["spec"]["containers"][0]), "{injected}");
        serves(&cluster.made(&cleaned(&injected)).await?);
    }
    cluster.stop().await
}
