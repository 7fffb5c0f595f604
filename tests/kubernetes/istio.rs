//! The Helm chart in Istio's mesh: what the API server and then Istio's own injector, with the templates of Istio's own
//! chart and ours, make of a pod: `make test-kubernetes`.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    kubernetes::{Cluster, object},
    workspace,
};
use tokio::time::{Instant, sleep};

const CHART: &str = "packaging/helm/sds-shim";
const ISTIOD: &str = "target/istio-injector/istiod";
const IMAGE: &str = "localhost/sds-shim:0.1.0-sidecar";
const TEMPLATES: &str = "inject.istio.io/templates";
const PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// How long a policy may take to be in force: it only bounds failures.
const IN_FORCE: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes istio-injector` builds"]
async fn istios_injector_starts_the_shim_before_its_agent() -> testkit::Result {
    let cluster = Cluster::start().await?;
    for namespace in ["foo", "bar"] {
        cluster.kubectl(&["create", "namespace", namespace]).await?;
        cluster.kubectl(&["wait", "--for=create", "-n", namespace, "sa/default"]).await?;
    }
    for (release, chart) in [("istio-base", "target/istio-injector/base"), ("istiod", ISTIOD)] {
        cluster.helm(&["install", release, chart, "-n", "istio-system", "--create-namespace"]).await?;
    }
    let values = "mode=istio,extraVolumes[0].name=mesh,extraVolumes[0].configMap.name=mesh,extraVolumeMounts[0].name=mesh,extraVolumeMounts[0].mountPath=/etc/mesh,metrics.enabled=true,env.SDS_SHIM_LOG=debug";
    let install = ["install", "sds-shim", CHART, "-n", "sds-shim", "--create-namespace", "--set", values];
    let notes = cluster.helm(&install).await?;
    istiod_keeps_its_version(&cluster, &notes).await?;
    strictness_is_asked_for(&cluster).await?;
    istiod_knows_the_template_first(&cluster).await?;
    policies(&cluster).await?;

    // Beside the application, and as a native sidecar.
    for (annotations, list) in [
        (json!({}), "containers"),
        (json!({ "sidecar.istio.io/nativeSidecar": "true" }), "initContainers"),
        (json!({ "sidecar.istio.io/interceptionMode": "NONE" }), "containers"),
    ] {
        let pod = injected(&cluster, &annotations).await?;
        assert_eq!(pod["metadata"]["labels"]["sds-shim.dev/injected"], "true");
        let proxy = container(&pod, list, "istio-proxy");
        assert_eq!(proxy["image"], IMAGE, "{annotations}");
        let arguments = proxy["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        assert_eq!(arguments.take(2).collect::<Vec<_>>(), ["proxy", "sidecar"], "Istio's arguments stay");
        assert_eq!(proxy["command"], Value::Null, "the image's entrypoint stays");
        let probe = &proxy["startupProbe"];
        assert_eq!(probe["httpGet"]["path"], "/healthz/ready", "Istio's own stays");
        assert_eq!((&probe["periodSeconds"], &probe["failureThreshold"]), (&json!(1), &json!(86400)), "it is a day");
        let set = |name: &str| variable(proxy, name);
        assert_eq!((set("SDS_SHIM_LOG"), set("SDS_SHIM_ADMIN")), (Some("debug"), Some("0.0.0.0:15022")));
        assert!(set("CA_ADDR").is_some(), "Istio's own stay");
        if annotations["sidecar.istio.io/interceptionMode"] != "NONE" {
            let image = container(&pod, "initContainers", "istio-init")["image"].as_str();
            assert!(image.is_some_and(|image| image.contains("proxyv2")), "it needs no shim: {image:?}");
        }
        let mounts = proxy["volumeMounts"].as_array().into_iter().flatten();
        let mounts: Vec<_> = mounts.filter_map(|mount| mount["mountPath"].as_str()).collect();
        assert!(mounts.contains(&"/etc/mesh") && mounts.contains(&"/var/run/secrets/tokens"), "{mounts:?}");
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        assert!(volumes.clone().any(|volume| volume["configMap"]["name"] == "mesh"));
        let sockets: Vec<_> = volumes.filter(|volume| volume["name"] == "workload-socket").collect();
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets[0]["emptyDir"]["medium"], "Memory");
    }
    the_annotation_names_the_image(&cluster).await?;
    the_audience_is_that_of_istios_volume(&cluster).await?;
    cluster.stop().await
}

/// Until then Istio would make no pod in the namespaces at all.
async fn istiod_knows_the_template_first(cluster: &Cluster) -> testkit::Result {
    let upgrade =
        ["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "--set", "namespaces={foo}"];
    let Err(refused) = cluster.helm(&upgrade).await else {
        return Err(Failure::new("namespaces are taken before istiod knows the template"));
    };
    assert!(
        refused.to_string().contains("does not know the injection template sds-shim of istio.templates"),
        "{refused}"
    );
    assert_eq!(made(cluster, "foo", &json!({})).await?["metadata"]["annotations"][TEMPLATES], Value::Null);
    configure(cluster, "").await?;
    cluster.helm(&upgrade).await.map(drop)
}

/// The rest of the mesh is left alone, until somebody wants it otherwise.
async fn strictness_is_asked_for(cluster: &Cluster) -> testkit::Result {
    let names = cluster.kubectl(&["get", "peerauthentications", "-A", "-o", "name"]).await?;
    assert_eq!(names.trim(), "");
    let value = "istio.peerAuthentication=true";
    let told = cluster
        .helm(&["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "--set", value])
        .await?;
    assert!(told.contains("Mutual TLS is STRICT in the whole mesh"), "{told}");
    let strict = cluster.get(&["peerauthentication", "default", "-n", "istio-system"]).await?;
    assert_eq!(strict["spec"]["mtls"]["mode"], "STRICT");
    Ok(())
}

/// Istio starts the container that redirects traffic from the image of the annotation, too.
async fn the_annotation_names_the_image(cluster: &Cluster) -> testkit::Result {
    let annotations = json!({ "sidecar.istio.io/proxyImage": "example.org/proxy:1" });
    for (value, first) in [("", "istio-init"), ("pilot.cni.enabled=true", "istio-validation")] {
        configure(cluster, value).await?;
        let pod = injected(cluster, &annotations).await?;
        let redirecting = container(&pod, "initContainers", first);
        assert_eq!(redirecting["command"], json!(["/usr/local/bin/pilot-agent"]));
        assert_eq!(redirecting["args"][0], "istio-iptables");
        for container in [redirecting, container(&pod, "containers", "istio-proxy")] {
            assert_eq!(container["image"], "example.org/proxy:1");
        }
    }
    Ok(())
}

/// With variables of ours or without; and who asks for other templates gets these.
async fn the_audience_is_that_of_istios_volume(cluster: &Cluster) -> testkit::Result {
    let chosen = "istio.templates=sidecar\\,sds-shim\\,sidecar";
    for values in ["metrics.enabled=true", "metrics.enabled=false,env=null"] {
        let values = format!("{chosen},{values}");
        let upgrade = ["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values", "--set", &values];
        cluster.helm(&upgrade).await?;
        for audience in ["istio-ca", "other"] {
            configure(cluster, &format!("global.sds.token.aud={audience}")).await?;
            let pod = injected(cluster, &json!({ TEMPLATES: "sidecar,sds-shim" })).await?;
            let proxy = container(&pod, "containers", "istio-proxy");
            let expected = (audience != "istio-ca").then_some(audience);
            assert_eq!(variable(proxy, "SDS_SHIM_TOKEN_AUDIENCE"), expected, "{values}");
            assert!(variable(proxy, "CA_ADDR").is_some(), "Istio's own stay");
        }
    }
    let deadline = Instant::now() + IN_FORCE;
    while made(cluster, "foo", &json!({})).await?["metadata"]["annotations"][TEMPLATES] != "sidecar,sds-shim,sidecar" {
        assert!(Instant::now() < deadline, "the policy is not in force");
        // Nobody tells when a policy is in force.
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The API server chooses our template for the pods of the mesh that choose none themselves.
async fn policies(cluster: &Cluster) -> testkit::Result {
    let deadline = Instant::now() + IN_FORCE;
    let annotations = loop {
        let annotations = made(cluster, "foo", &json!({})).await?["metadata"]["annotations"].clone();
        if annotations[TEMPLATES] == "sidecar,sds-shim" {
            break annotations;
        }
        if Instant::now() > deadline {
            return Err(cluster.explain(Failure::new(format!("the policy is not in force: {annotations}"))));
        }
        // Nobody tells when a policy is in force.
        sleep(Duration::from_millis(200)).await;
    };
    // It is not injected yet, and may never be.
    assert_eq!(made(cluster, "foo", &json!({})).await?["metadata"]["labels"], Value::Null);
    // Prometheus' requests come without mutual TLS.
    assert_eq!(annotations[PORTS], "15022");
    for (namespace, given, name, expected) in [
        ("foo", json!({ PORTS: "9000" }), PORTS, json!("9000,15022")),
        ("foo", json!({ PORTS: "15022,9000" }), PORTS, json!("15022,9000")),
        ("foo", json!({ TEMPLATES: "own, sds-shim" }), TEMPLATES, json!("own, sds-shim")),
        ("foo", json!({ TEMPLATES: "own, sds-shim" }), PORTS, json!("15022")),
        ("foo", json!({ TEMPLATES: "gateway" }), PORTS, Value::Null),
        ("foo", json!({ TEMPLATES: "gateway" }), TEMPLATES, json!("gateway")),
        ("bar", json!({}), TEMPLATES, Value::Null),
    ] {
        assert_eq!(made(cluster, namespace, &given).await?["metadata"]["annotations"][name], expected, "{given}");
    }
    Ok(())
}

async fn made(cluster: &Cluster, namespace: &str, annotations: &Value) -> Result<Value, Failure> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "app", "namespace": namespace, "annotations": annotations },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    cluster.made(&pod).await
}

/// The guide's command that gives istiod our template.
fn command() -> Result<String, Failure> {
    let guide = fs::read_to_string(workspace().join("src/manual/guide/istio.md")).or_fail("read the guide")?;
    let begin = "kubectl -n sds-shim get configmap sds-shim-istio ";
    let (_, rest) = guide.split_once(begin).ok_or_else(|| Failure::new("the guide has no such command"))?;
    Ok(format!("{begin}{}", rest.split("\n```").next().unwrap_or_default()))
}

/// Without a cluster as well: it is where it is looked for.
#[test]
fn the_guide_has_the_command() -> testkit::Result {
    assert!(command()?.contains("helm upgrade istiod "));
    Ok(())
}

/// Who gives it a template must not upgrade istiod: Helm is told the version that is there.
async fn istiod_keeps_its_version(cluster: &Cluster, notes: &str) -> testkit::Result {
    let command = command()?;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert!(words(notes).contains(&words(&command)), "the notes have another command: {notes}");
    let version = command.split_once("--version ").map_or("", |(_, version)| version);
    let told = cluster.script(&format!("echo {version}")).await?.success()?;
    let chart = fs::read_to_string(workspace().join(ISTIOD).join("Chart.yaml")).or_fail("read istiod's chart")?;
    assert!(chart.contains(&format!("\nversion: {}\n", told.trim())), "{told:?} is not the version in {chart}");
    Ok(())
}

/// Gives istiod our template as the manual has it, with a value besides, and takes what the injector would have then.
pub(crate) async fn configure(cluster: &Cluster, value: &str) -> testkit::Result {
    let script = format!("{} --set '{value}'", command()?.replace("istio/istiod", ISTIOD));
    cluster.script(&script).await?.success()?;
    let map = cluster.get(&["configmap", "istio-sidecar-injector", "-n", "istio-system"]).await?;
    for name in ["config", "values"] {
        let text = map["data"][name].as_str().unwrap_or_default();
        fs::write(cluster.path().join(name), text).or_fail(format!("write the injector's {name}"))?;
    }
    Ok(())
}

/// What becomes of a pod with these annotations in the end.
async fn injected(cluster: &Cluster, annotations: &Value) -> Result<Value, Failure> {
    let pod = made(cluster, "foo", annotations).await?;
    inject(cluster.path(), &pod)
}

fn inject(directory: &Path, pod: &Value) -> Result<Value, Failure> {
    let mut command = Command::new(workspace().join("target/istio-injector/istio-injector"));
    command.args(["config", "values"]).current_dir(directory);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().or_fail("run tests/testkit/install-istio-injector.sh")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(pod.to_string().as_bytes()).or_fail("write the pod")?;
    }
    let output = child.wait_with_output().or_fail("wait for the injector")?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    object(&String::from_utf8_lossy(&output.stdout))
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let mut found = pod["spec"][list].as_array().into_iter().flatten().filter(|container| container["name"] == name);
    found.next().unwrap_or_else(|| panic!("{name} is not among the {list} of {pod}"))
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut set = container["env"].as_array().into_iter().flatten().filter(|variable| variable["name"] == name);
    set.next()?["value"].as_str()
}
