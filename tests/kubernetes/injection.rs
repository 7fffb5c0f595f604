//! What a real API server makes of pods once the chart is installed: `make test-kubernetes`.

mod order;
mod pods;
mod workload_api;

use std::fs;

use pods::{
    IN_FORCE, POLL, bootstrap, cleaned, extra_mounts, extra_volumes, made_so, names, namespaces, pod, port, sidecar,
    unusual,
};
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    kubernetes::{Cluster, object},
};
use tokio::time::{Instant, sleep};

const CHART: &str = "packaging/helm/sds-shim";
const SAMPLE: &str = "packaging/helm/sds-shim/samples/values.yaml";

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn pods_of_the_mesh_get_their_sidecars_and_others_do_not() -> testkit::Result {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    cluster.helm(&["install", "sds-shim", CHART, "-n", "sds-shim", "--create-namespace", "-f", SAMPLE]).await?;
    let plain = pod(json!({}), json!({}));
    let injected = made_so(&cluster, &plain, |pod| port(pod).is_some()).await?;
    assert_eq!(names(&injected, "initContainers"), ["sds-shim", "sds-shim-envoy"]);
    assert_eq!(injected["metadata"]["labels"]["sds-shim.dev/injected"], "true");
    assert_eq!(port(&injected), Some(0), "it names none");
    start_up_probes_outlast_an_outage_of_the_ca(&injected);
    the_api_servers_token_stays_where_it_was(&injected);

    // Made a second time, as by those who inject before they apply.
    let again = cluster.made(&cleaned(&injected)).await?;
    assert_eq!(names(&again, "initContainers"), ["sds-shim", "sds-shim-envoy"]);
    assert_eq!(names(&again, "volumes").iter().filter(|name| **name == "sds-shim-socket").count(), 1);

    // Ahead of what is there, and beside it.
    let container = plain["spec"]["containers"][0].clone();
    let mut own = container.clone();
    own["name"] = json!("own");
    let spec = json!({ "initContainers": [own], "volumes": [{ "name": "own", "emptyDir": {} }] });
    let pod_with = pod(json!({ "labels": { "app": "a" } }), spec);
    let with = cluster.made(&pod_with).await?;
    assert_eq!(names(&with, "initContainers"), ["sds-shim", "sds-shim-envoy", "own"]);
    assert!(names(&with, "volumes").contains(&"own"));
    assert_eq!(with["metadata"]["labels"]["app"], "a");

    let out = json!({ "labels": { "sds-shim.dev/inject": "false" } });
    for outside in [pod(out, json!({})), pod(json!({ "namespace": "default" }), json!({}))] {
        let made = cluster.made(&outside).await?;
        assert_eq!(names(&made, "initContainers"), [""; 0], "{outside}");
    }
    ports(&cluster, &container).await?;
    the_authority_outlives_an_upgrade(&cluster).await?;
    pods_keep_their_ports(&cluster, &injected).await?;
    cluster.stop().await
}

async fn ports(cluster: &Cluster, container: &Value) -> testkit::Result {
    let mut listening = container.clone();
    listening["ports"] = json!([{ "containerPort": 7070 }, { "containerPort": 7071 }]);
    let spec = json!({ "containers": [listening] });
    let annotated = |port: &str| json!({ "annotations": { "sds-shim.dev/port": port } });
    assert_eq!(port(&cluster.made(&pod(json!({}), spec.clone())).await?), Some(7070));
    assert_eq!(port(&cluster.made(&pod(annotated("65535"), spec.clone())).await?), Some(65535));
    for wrong in ["http", "0", "080", "65536", "8080 ", "-1", ""] {
        let refused = refused(cluster, &pod(annotated(wrong), spec.clone())).await?;
        assert!(refused.contains("the annotation sds-shim.dev/port must be the number"), "{wrong:?}: {refused}");
    }
    Ok(())
}

/// Why a pod cannot be made, as soon as that is so.
async fn refused(cluster: &Cluster, pod: &Value) -> Result<String, Failure> {
    let deadline = Instant::now() + IN_FORCE;
    loop {
        match cluster.made(pod).await {
            Err(refused) => return Ok(refused.to_string()),
            Ok(made) if Instant::now() > deadline => return Err(Failure::new(format!("it is made: {made}"))),
            Ok(_) => sleep(POLL).await,
        }
    }
}

/// Who is ended while the CA is away forgets how long to wait, and then waits for kubelet as well.
fn start_up_probes_outlast_an_outage_of_the_ca(pod: &Value) {
    const DAY: u64 = 86400;
    for sidecar in [sidecar(pod, 0), sidecar(pod, 1)] {
        let number = |name: &str| sidecar["startupProbe"][name].as_u64().unwrap_or_default();
        assert!(number("periodSeconds") * number("failureThreshold") >= DAY, "{sidecar}");
    }
}

/// The application has it, the shim may need it, and Envoy has no use for it.
fn the_api_servers_token_stays_where_it_was(pod: &Value) {
    let volume = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let mut found = mounts.filter(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
        found.next().and_then(|mount| mount["name"].as_str()).unwrap_or_default().to_owned()
    };
    assert!(volume(&pod["spec"]["containers"][0]).starts_with("kube-api-access"));
    assert_eq!(volume(sidecar(pod, 1)), "sds-shim-nothing");
}

async fn the_authority_outlives_an_upgrade(cluster: &Cluster) -> testkit::Result {
    let authority = ["secret", "sds-shim-development-ca", "-n", "sds-shim"];
    let before = cluster.get(&authority).await?;
    cluster.helm(&["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values"]).await?;
    let after = cluster.get(&authority).await?;
    assert_eq!(before["data"], after["data"], "the root is another one");
    let map = cluster.get(&["configmap", "sds-shim", "-n", "bar"]).await?;
    assert!(map["data"]["root-cert.pem"].as_str().is_some_and(|root| root.starts_with("-----BEGIN CERTIFICATE")));
    Ok(())
}

/// Probes and services of a pod that runs are for the ports that it was made with; what else changes reaches it.
async fn pods_keep_their_ports(cluster: &Cluster, pod: &Value) -> testkit::Result {
    let key = |pod: &Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let mut items = volumes.flat_map(|volume| volume["configMap"]["items"].as_array().into_iter().flatten());
        let item = items.find(|item| item["path"] == "listeners.json").unwrap_or(&Value::Null);
        item["key"].as_str().unwrap_or_default().to_owned()
    };
    let before = key(pod);
    let values =
        "proxy.inboundPort=16006,proxy.healthPort=16021,mutualTLS.mode=PERMISSIVE,mutualTLS.networkPolicy=true";
    cluster
        .helm(&["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "--set", values])
        .await?;
    let simple = self::pod(json!({}), json!({}));
    let after = made_so(cluster, &simple, |pod| key(pod) != before).await?;
    let map = cluster.get(&["configmap", "sds-shim", "-n", "foo"]).await?;
    for (key, port) in [(before, 15006), (key(&after), 16006)] {
        let listeners = object(map["data"][&key].as_str().unwrap_or_default())?;
        let inbound = &listeners["resources"][0];
        assert_eq!(inbound["address"]["socket_address"]["port_value"], port, "{key}");
        assert_eq!(inbound["filter_chains"].as_array().map(Vec::len), Some(2), "plaintext is taken, too");
    }
    let policy = cluster.get(&["networkpolicy", "sds-shim", "-n", "foo"]).await?;
    let open = policy["spec"]["ingress"][0]["ports"].as_array().into_iter().flatten().map(|port| &port["port"]);
    assert_eq!(open.collect::<Vec<_>>(), [16006, 15006, 16021]);
    let health = |pod: &Value| {
        let probe = &sidecar(pod, 1)["startupProbe"]["httpGet"];
        let listens = bootstrap(pod)?["static_resources"]["listeners"][0]["address"]["socket_address"].clone();
        Some((probe["port"].clone(), listens["port_value"].clone()))
    };
    assert_eq!(health(pod), Some((json!(15021), json!(15021))));
    assert_eq!(health(&after), Some((json!(16021), json!(16021))));
    Ok(())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn values_arrive_in_the_pods_and_nothing_is_left_of_a_release() -> testkit::Result {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    let file = cluster.path().join("values.json");
    fs::write(&file, unusual().to_string()).or_fail("write the values")?;
    let file = file.display().to_string();
    cluster.helm(&["install", "sds-shim", CHART, "-n", "default", "-f", &file]).await?;
    let made = made_so(&cluster, &pod(json!({}), json!({})), |pod| port(pod).is_some()).await?;
    let shim = sidecar(&made, 0);
    assert_eq!(shim["image"], format!("example.org/shim@sha256:{}", "a".repeat(64)));
    let variables = shim["env"].as_array().into_iter().flatten();
    let set: Vec<_> = variables.filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?))).collect();
    let expected = [
        ("CA_ADDR", "ca.example.org:443,10.0.0.1:15012"),
        ("CA_HEADER_X", "\"quoted\" \\ 'text' <&> é"),
        ("ISTIOD_SAN", "ca.example.org"),
        ("SDS_SHIM_ADMIN", "[::]:15022"),
        ("SDS_SHIM_TOKEN_AUDIENCE", "other"),
        ("TRUST_DOMAIN", "example.org"),
        ("WORKLOAD_IDENTITY_SOCKET_FILE", "other"),
    ];
    assert_eq!(set, expected);
    for (list, extra) in [(&made["spec"]["volumes"], extra_volumes()), (&shim["volumeMounts"], extra_mounts())] {
        for extra in extra.as_array().into_iter().flatten() {
            assert!(list.as_array().into_iter().flatten().any(|one| one == extra), "{extra} is not in {list}");
        }
    }
    assert_eq!(shim["securityContext"]["runAsUser"], Value::Null);
    assert_eq!(shim["securityContext"]["seccompProfile"]["localhostProfile"], "sds-shim.json");
    assert_eq!((&shim["startupProbe"], &shim["readinessProbe"]), (&Value::Null, &Value::Null));
    let volumes = made["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.filter_map(|volume| volume["projected"]["sources"].as_array()).flatten();
    let sources: Vec<_> = sources.collect();
    let token = json!({ "audience": "other", "expirationSeconds": 3600, "path": "istio-token" });
    assert!(sources.iter().any(|source| source["serviceAccountToken"] == token), "{sources:?}");
    assert!(sources.iter().any(|source| source["clusterTrustBundle"]["signerName"] == "example.org/mesh"));

    assert!(everything(&cluster).await?.len() > 5);
    cluster.helm(&["uninstall", "sds-shim", "-n", "default", "--wait"]).await?;
    assert_eq!(everything(&cluster).await?, [""; 0], "it is left");
    cluster.stop().await
}

/// What older API servers are given makes the same of a deployment.
#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn a_patch_adds_the_same_sidecars() -> testkit::Result {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    let install = ["install", "sds-shim", CHART, "-n", "default", "-f", SAMPLE, "--set", "injection=patch"];
    let told = cluster.helm(&install).await?;
    let end = told.split_once("Clean up: ").map_or("", |(_, end)| end);
    assert!(
        end.contains("fail to start again after a node reboot") && end.contains("the development CA is gone"),
        "{told}"
    );
    cluster.kubectl(&["apply", "-n", "foo", "-f", &format!("{CHART}/samples/httpbin.yaml")]).await?;
    let (_, command) = told.split_once("check its identity:\n").expect("the notes have the command");
    let command = command.split("\n  kubectl -n foo exec").next().unwrap_or_default();
    cluster.script(&command.replace("deployment sleep", "deployment httpbin")).await?.success()?;
    let patched = cluster.get(&["deployment", "httpbin", "-n", "foo"]).await?["spec"]["template"].clone();

    cluster.helm(&["upgrade", "sds-shim", CHART, "-n", "default", "-f", SAMPLE]).await?;
    let annotated = json!({ "annotations": { "sds-shim.dev/port": "8080" } });
    let injected = made_so(&cluster, &pod(annotated, json!({})), |pod| port(pod).is_some()).await?;
    assert_eq!(port(&patched), Some(8080));
    assert_eq!(patched["metadata"]["labels"]["sds-shim.dev/injected"], "true");
    for list in ["initContainers", "volumes"] {
        let ours = |pod: &Value| {
            let entries = pod["spec"][list].as_array().into_iter().flatten().cloned();
            let mut ours: Vec<_> = entries.filter(|entry| entry["name"].to_string().contains("sds-shim")).collect();
            // The API server mounts its own token into what comes without it.
            for container in &mut ours {
                if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                    mounts.retain(|mount| !mount["name"].to_string().contains("kube-api-access"));
                }
            }
            ours
        };
        assert_eq!(ours(&patched), ours(&injected), "{list}");
    }
    cluster.stop().await
}

/// What a release makes and could leave behind, by kind, namespace and name.
async fn everything(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let kinds = "configmaps,networkpolicies,secrets,services,serviceaccounts,deployments,clusterrolebindings,\
                 mutatingadmissionpolicies,mutatingadmissionpolicybindings,\
                 validatingadmissionpolicies,validatingadmissionpolicybindings";
    let all = cluster.get(&[kinds, "-A"]).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = all["items"].as_array().into_iter().flatten();
    let named = items.map(|item| {
        let metadata = &item["metadata"];
        format!("{} {}/{}", text(&item["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
    });
    Ok(named.filter(|name| name.contains("sds-shim")).collect())
}
