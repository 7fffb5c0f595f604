//! What a real API server makes of pods once the chart is installed: `make test-kubernetes`.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    kubernetes::{Cluster, object},
    workspace,
};
use tokio::time::{Instant, sleep};

type Outcome = Result<(), Failure>;

const CHART: &str = "packaging/helm/sds-shim";
const SAMPLE: &str = "packaging/helm/sds-shim/samples/values.yaml";
/// How long a changed policy may take to be in force: it only bounds failures.
const IN_FORCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn pods_of_the_mesh_get_their_sidecars_and_others_do_not() -> Outcome {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    cluster.helm(&["install", "sds-shim", CHART, "-n", "sds-shim", "--create-namespace", "-f", SAMPLE]).await?;
    let plain = pod(json!({}), json!({}));
    let injected = made_so(&cluster, &plain, |pod| port(pod).is_some()).await?;
    assert_eq!(names(&injected, "initContainers"), ["sds-shim", "sds-shim-envoy"]);
    assert_eq!(injected["metadata"]["labels"]["sds-shim.dev/injected"], "true");
    assert_eq!(port(&injected), Some(0), "it names none");
    the_api_servers_token_stays_where_it_was(&injected);

    // Made a second time, as by those who inject before they apply.
    let again = made(&cluster, &cleaned(&injected)).await?;
    assert_eq!(names(&again, "initContainers"), ["sds-shim", "sds-shim-envoy"]);
    assert_eq!(names(&again, "volumes").iter().filter(|name| **name == "sds-shim-socket").count(), 1);

    // Ahead of what is there, and beside it.
    let container = plain["spec"]["containers"][0].clone();
    let mut own = container.clone();
    own["name"] = json!("own");
    let spec = json!({ "initContainers": [own], "volumes": [{ "name": "own", "emptyDir": {} }] });
    let pod_with = pod(json!({ "labels": { "app": "a" } }), spec);
    let with = made(&cluster, &pod_with).await?;
    assert_eq!(names(&with, "initContainers"), ["sds-shim", "sds-shim-envoy", "own"]);
    assert!(names(&with, "volumes").contains(&"own"));
    assert_eq!(with["metadata"]["labels"]["app"], "a");

    let out = json!({ "labels": { "sds-shim.dev/inject": "false" } });
    for outside in [pod(out, json!({})), pod(json!({ "namespace": "default" }), json!({}))] {
        let made = made(&cluster, &outside).await?;
        assert_eq!(names(&made, "initContainers"), [""; 0], "{outside}");
    }
    ports(&cluster, &container).await?;
    the_authority_outlives_an_upgrade(&cluster).await?;
    cluster.stop().await
}

async fn ports(cluster: &Cluster, container: &Value) -> Outcome {
    let mut listening = container.clone();
    listening["ports"] = json!([{ "containerPort": 7070 }, { "containerPort": 7071 }]);
    let spec = json!({ "containers": [listening] });
    let annotated = |port: &str| json!({ "annotations": { "sds-shim.dev/port": port } });
    assert_eq!(port(&made(cluster, &pod(json!({}), spec.clone())).await?), Some(7070));
    assert_eq!(port(&made(cluster, &pod(annotated("65535"), spec.clone())).await?), Some(65535));
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
        match made(cluster, pod).await {
            Err(refused) => return Ok(refused.to_string()),
            Ok(made) if Instant::now() > deadline => return Err(Failure::new(format!("it is made: {made}"))),
            Ok(_) => sleep(POLL).await,
        }
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

async fn the_authority_outlives_an_upgrade(cluster: &Cluster) -> Outcome {
    let authority = ["secret", "sds-shim-development-ca", "-n", "sds-shim"];
    let before = cluster.get(&authority).await?;
    cluster.helm(&["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reuse-values"]).await?;
    let after = cluster.get(&authority).await?;
    assert_eq!(before["data"], after["data"], "the root is another one");
    let map = cluster.get(&["configmap", "sds-shim", "-n", "bar"]).await?;
    assert!(map["data"]["root-cert.pem"].as_str().is_some_and(|root| root.starts_with("-----BEGIN CERTIFICATE")));
    Ok(())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn values_arrive_in_the_pods_and_nothing_is_left_of_a_release() -> Outcome {
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
async fn a_patch_adds_the_same_sidecars() -> Outcome {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    let install = ["install", "sds-shim", CHART, "-n", "default", "-f", SAMPLE, "--set", "injection=patch"];
    let told = cluster.helm(&install).await?;
    cluster.kubectl(&["apply", "-n", "foo", "-f", &format!("{CHART}/samples/httpbin.yaml")]).await?;
    let (_, command) = told.split_once("look at who it is:\n").expect("the notes have the command");
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

/// `tests/pods` runs pods without a cluster, from files. After a change of the chart `WRITE_PODS=1` writes them anew.
#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_pods_that_run_without_a_cluster_are_those_of_the_api_server() -> Outcome {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    let istiod = ["--set", "developmentCA.enabled=false"];
    let install = ["install", "sds-shim", CHART, "-n", "default", "-f", SAMPLE];
    cluster.helm(&[&install[..], &istiod].concat()).await?;
    made_so(&cluster, &pod(json!({}), json!({})), |pod| port(pod).is_some()).await?;
    let mut files = Vec::new();
    for name in ["httpbin", "sleep"] {
        let sample = format!("{CHART}/samples/{name}.yaml");
        cluster.kubectl(&["apply", "-n", "foo", "-f", &sample]).await?;
        let deployment = cluster.get(&["deployment", name, "-n", "foo"]).await?;
        let mut template = deployment["spec"]["template"].clone();
        template["apiVersion"] = json!("v1");
        template["kind"] = json!("Pod");
        template["metadata"]["name"] = json!(name);
        template["metadata"]["namespace"] = json!("foo");
        files.push((name, stripped(made(&cluster, &template).await?)));
    }
    let mut service = stripped(cluster.get(&["service", "httpbin", "-n", "foo"]).await?);
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.retain(|name, _| !name.starts_with("clusterIP"));
    }
    if let Some(metadata) = service["metadata"].as_object_mut() {
        metadata.remove("annotations");
    }
    files.push(("httpbin-service", service));
    let mut map = stripped(cluster.get(&["configmap", "sds-shim", "-n", "foo"]).await?);
    map["metadata"] = json!({ "name": "sds-shim", "namespace": "foo" });
    files.push(("configuration", map));
    for (name, object) in files {
        let path = workspace().join("tests/pods").join(format!("{name}.json"));
        let text = format!("{object:#}\n");
        if std::env::var_os("WRITE_PODS").is_some() {
            fs::write(&path, text).or_fail("write the object")?;
            continue;
        }
        let told = fs::read_to_string(&path).or_fail(format!("read {}", path.display()))?;
        assert_eq!(told, text, "{} is not what the API server has now: WRITE_PODS=1 writes it anew", path.display());
    }
    cluster.stop().await
}

/// Without what is another one each time.
fn stripped(object: Value) -> Value {
    let mut object = cleaned(&object);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
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

/// Without what only the API server may set.
fn cleaned(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.retain(|name, _| ["name", "namespace", "labels", "annotations"].contains(&name.as_str()));
    }
    pod["status"] = json!({});
    pod
}

/// Nearly all that can be chosen, chosen otherwise than by default.
fn unusual() -> Value {
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

/// A pod that the restricted Pod Security Standard allows.
fn pod(metadata: Value, spec: Value) -> Value {
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

/// What the API server would make of a pod.
async fn made(cluster: &Cluster, pod: &Value) -> Result<Value, Failure> {
    let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    object(&cluster.kubectl_on(pod, &arguments).await?)
}

/// The same, as soon as it is as expected.
async fn made_so(cluster: &Cluster, pod: &Value, expected: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
    let deadline = Instant::now() + IN_FORCE;
    loop {
        let made = made(cluster, pod).await;
        match made {
            Ok(made) if expected(&made) => return Ok(made),
            made if Instant::now() > deadline => {
                return Err(cluster.explain(Failure::new(format!("the policy is not in force: {made:?}"))));
            }
            // Nobody tells when a policy is in force.
            _ => sleep(POLL).await,
        }
    }
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str()).collect()
}

fn sidecar(pod: &Value, index: usize) -> &Value {
    &pod["spec"]["initContainers"][index]
}

fn port(pod: &Value) -> Option<u64> {
    let text = sidecar(pod, 1)["args"][3].as_str()?;
    let configuration: Value = serde_json::from_str(text).ok()?;
    let endpoint = &configuration["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0];
    endpoint["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"].as_u64()
}

async fn namespaces(cluster: &Cluster) -> Outcome {
    for namespace in ["foo", "bar"] {
        cluster.kubectl(&["create", "namespace", namespace]).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        cluster.kubectl(&["label", "namespace", namespace, label]).await?;
        cluster.kubectl(&["wait", "--for=create", "-n", namespace, "sa/default"]).await?;
    }
    Ok(())
}
