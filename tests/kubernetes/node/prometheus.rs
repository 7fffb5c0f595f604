//! A Prometheus that the Prometheus operator runs scrapes what the chart's PodMonitor names: in clear, and over mutual TLS.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::{Value, json};
use testkit::{Failure, OrFail, http, kubernetes::object, node::KUBELET, workspace};
use tokio::{net::TcpStream, time::Instant};

use super::{
    mesh::{HTTPBIN, Mesh, SHIM, SLEEP, address},
    upgrade::{fresh, restart},
};

/// Where the images are, in the node's containerd alone.
const HUB: &str = "localhost/prometheus-operator";
const TAG: &str = "1";
const MONITORING: &str = "monitoring";
/// Who scrapes.
const PROMETHEUS: &str = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
/// Where its shim writes its certificate.
const CERTIFICATES: &str = "/etc/prom-certs";
/// What the operator calls the pod.
const POD: &str = "prometheus-mesh-0";

pub(crate) async fn prometheus_scrapes_what_the_pod_monitor_names(mesh: &Mesh) -> testkit::Result {
    mesh.node.load_prometheus(HUB, TAG).await?;
    let kinds = workspace().join("target/prometheus-operator/kinds").display().to_string();
    mesh.cluster.kubectl(&["create", "-f", &kinds]).await?;
    mesh.cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]).await?;
    let begun = Instant::now();
    mesh.upgrade(&values(&json!({ "enabled": true }), "")).await?;
    start(mesh).await?;
    let up = scraped(mesh, "http", 15022).await?;
    println!("Prometheus has scraped {up:?} {:.1?} after the operator's start", begun.elapsed());
    rules_are_evaluated(mesh).await?;

    mesh.upgrade(&values(&json!({ "enabled": true, "tlsClients": [PROMETHEUS] }), "mesh")).await?;
    mesh.injects(HTTPBIN, "15023").await?;
    tokio::try_join!(restart(mesh, SLEEP), restart(mesh, HTTPBIN))?;
    let begun = Instant::now();
    // kubelet brings a changed Secret at its next look, or when the pod changes.
    mesh.cluster.kubectl(&["annotate", "pod", POD, "-n", MONITORING, "changed=yes"]).await?;
    let up = scraped(mesh, "https", 15023).await?;
    println!("over mutual TLS it has scraped {up:?} {:.1?} after the pods were ready", begun.elapsed());

    // Prometheus takes its time.
    mesh.cluster.kubectl(&["delete", "namespace", MONITORING, "--wait=false"]).await?;
    fresh(mesh, "0.0.0.0:15022").await
}

fn values(metrics: &Value, scrape_class: &str) -> Value {
    json!({
        "metrics": metrics,
        "podMonitor": { "enabled": true, "interval": "1s", "scrapeClass": scrape_class },
        "prometheusRule": { "enabled": true },
    })
}

/// The operator, and a Prometheus that takes what any PodMonitor and PrometheusRule says.
async fn start(mesh: &Mesh) -> testkit::Result {
    mesh.cluster.restricted_namespace(MONITORING).await?;
    for (account, role) in [("operator", "cluster-admin"), ("prometheus", "view")] {
        mesh.cluster.kubectl(&["create", "serviceaccount", account, "-n", MONITORING]).await?;
        let (role, account) = (format!("--clusterrole={role}"), format!("--serviceaccount={MONITORING}:{account}"));
        let name = format!("{MONITORING}-{}", role.trim_start_matches("--clusterrole="));
        mesh.cluster.kubectl(&["create", "clusterrolebinding", &name, &role, &account]).await?;
    }
    let root = format!("--from-literal=root-cert.pem={}", mesh.client().1);
    mesh.cluster.kubectl(&["create", "configmap", SHIM, "-n", MONITORING, &root]).await?;
    mesh.cluster.create(&operator()).await?;
    mesh.cluster.create(&prometheus(mesh).await?).await.map(drop)
}

fn operator() -> Value {
    let labels = json!({ "app": "operator" });
    let container = json!({
        "name": "operator",
        "image": format!("{HUB}/operator:{TAG}"),
        "args": [
            format!("--prometheus-config-reloader={HUB}/prometheus-config-reloader:{TAG}"),
            // By default it has a hundredth of a processor.
            "--config-reloader-cpu-limit=0",
            "--kubelet-endpoints=false",
        ],
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
    });
    let pod = json!({
        "serviceAccountName": "operator",
        "containers": [container],
        "securityContext": security_context(),
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "operator", "namespace": MONITORING },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    })
}

/// With a shim beside it, that writes its certificate to files, as the manual has it.
async fn prometheus(mesh: &Mesh) -> Result<Value, Failure> {
    let (shim, mut volumes) = shim(mesh).await?;
    volumes.push(json!({ "name": "certificates", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }));
    let tls = json!({
        "certFile": format!("{CERTIFICATES}/cert-chain.pem"),
        "keyFile": format!("{CERTIFICATES}/key.pem"),
        "insecureSkipVerify": true,
    });
    Ok(json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": { "name": "mesh", "namespace": MONITORING },
        "spec": {
            "image": format!("{HUB}/prometheus:{TAG}"),
            // The operator writes a configuration for it.
            "version": version()?,
            "serviceAccountName": "prometheus",
            "securityContext": security_context(),
            "evaluationInterval": "1s",
            "podMonitorSelector": {},
            "podMonitorNamespaceSelector": {},
            "ruleSelector": {},
            "ruleNamespaceSelector": {},
            "scrapeClasses": [{ "name": "mesh", "tlsConfig": tls }],
            "initContainers": [shim],
            "volumes": volumes,
            "volumeMounts": [{ "name": "certificates", "mountPath": CERTIFICATES, "readOnly": true }],
        },
    }))
}

/// The Prometheus that is built: its module 0.316.0 is release 3.16.0.
fn version() -> Result<String, Failure> {
    let file = workspace().join("tests/go/prometheus/go.mod");
    let text = fs::read_to_string(&file).or_fail(format!("read {}", file.display()))?;
    let found = text.lines().find_map(|line| line.trim().strip_prefix("github.com/prometheus/prometheus v0."));
    let module = found.and_then(|rest| rest.split(' ').next()).and_then(|module| module.split_at_checked(1));
    let (major, rest) = module.ok_or_else(|| Failure::new(format!("{} names no Prometheus", file.display())))?;
    Ok(format!("v{major}.{rest}"))
}

/// The shim as the chart has it in any pod, and the volumes that it needs.
async fn shim(mesh: &Mesh) -> Result<(Value, Vec<Value>), Failure> {
    let mut pod = mesh.injected(SLEEP).await?;
    let mut shim = pod["spec"]["initContainers"][0].take();
    assert_eq!(shim["name"], SHIM);
    let ours = |one: &Value| one["name"].as_str().is_some_and(|name| name.starts_with("sds-shim-"));
    if let Some(mounts) = shim["volumeMounts"].as_array_mut() {
        mounts.retain(ours);
        mounts.push(json!({ "name": "certificates", "mountPath": CERTIFICATES }));
    }
    if let Some(variables) = shim["env"].as_array_mut() {
        variables.push(json!({ "name": "OUTPUT_CERTS", "value": CERTIFICATES }));
    }
    let mut volumes = pod["spec"]["volumes"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let needed: BTreeSet<_> = ["sds-shim-socket", "sds-shim-token", "sds-shim-ca-root"].into();
    volumes.retain(|one| one["name"].as_str().is_some_and(|name| needed.contains(name)));
    Ok((shim, volumes))
}

/// The shim's user, whose files Prometheus reads.
fn security_context() -> Value {
    json!({
        "runAsUser": 1337,
        "runAsGroup": 1337,
        "fsGroup": 1337,
        "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Waits until Prometheus has scraped the pods that there are now, and no others, at this port; returns them.
async fn scraped(mesh: &Mesh, scheme: &str, port: u16) -> Result<Vec<String>, Failure> {
    let mut expected = BTreeMap::new();
    for of in [SLEEP, HTTPBIN] {
        let pod = mesh.pod(of).await?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        expected.insert((of.0.to_owned(), name), format!("{scheme}://{}:{port}/metrics", address(&pod)?));
    }
    let look = async || {
        // Until it listens, who asks is refused.
        let Ok(targets) = ask(mesh, "/api/v1/targets?state=active").await else { return Ok(None) };
        let targets = targets["activeTargets"].as_array().into_iter().flatten();
        let up = targets.filter(|one| one["health"] == "up");
        let up: BTreeMap<_, _> =
            up.map(|one| (named(&one["labels"]), one["scrapeUrl"].as_str().unwrap_or_default().to_owned())).collect();
        Ok((up == expected && all(mesh, "up", &expected).await? && all(mesh, "sds_shim_ready", &expected).await?)
            .then_some(()))
    };
    if let Err(failure) = mesh.eventually("scraped by Prometheus", KUBELET, look).await {
        return Err(explain(mesh, failure).await);
    }
    for (namespace, account) in [SLEEP, HTTPBIN] {
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let asked = format!(
            "sds_shim_not_after_timestamp_seconds{{namespace=\"{namespace}\",identity=\"{id}\",kind=\"leaf\"}}"
        );
        let found = query(mesh, &asked).await?;
        assert_eq!(found.len(), 1, "{asked}: {found:?}");
    }
    Ok(expected.into_keys().map(|(namespace, pod)| format!("{namespace}/{pod}")).collect())
}

/// Whether these pods, and no others, have the metric, and it is 1.
async fn all(mesh: &Mesh, metric: &str, expected: &BTreeMap<(String, String), String>) -> Result<bool, Failure> {
    let found = query(mesh, metric).await?;
    let pods: BTreeSet<_> =
        found.iter().filter(|one| one["value"][1] == "1").map(|one| named(&one["metric"])).collect();
    Ok(found.len() == expected.len() && pods.iter().eq(expected.keys()))
}

/// Namespace and pod of a series or a target.
fn named(labels: &Value) -> (String, String) {
    let text = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("pod"))
}

/// The chart's alerts are taken, and none of them fails.
async fn rules_are_evaluated(mesh: &Mesh) -> testkit::Result {
    let look = async || {
        let groups = ask(mesh, "/api/v1/rules").await?;
        let groups = groups["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        assert!(!rules.is_empty() && rules.iter().all(|rule| rule["health"] != "err"), "{groups:?}");
        Ok(rules.iter().all(|rule| rule["health"] == "ok").then_some(rules.len()))
    };
    let (count, _) = mesh.eventually("all rules evaluated", KUBELET, look).await?;
    println!("  and evaluates {count} rules");
    Ok(())
}

async fn query(mesh: &Mesh, query: &str) -> Result<Vec<Value>, Failure> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut told = ask(mesh, &format!("/api/v1/query?query={encoded}")).await?;
    Ok(told["result"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// What Prometheus answers, without what says that it is an answer.
async fn ask(mesh: &Mesh, path: &str) -> Result<Value, Failure> {
    let pod = mesh.cluster.get(&["pod", POD, "-n", MONITORING]).await?;
    let address = address(&pod)?;
    let stream = TcpStream::connect((address, 9090)).await.or_fail("connect to Prometheus")?;
    let answer = http::get(stream, &address.to_string(), path).await?;
    match answer.status {
        200 => Ok(object(&answer.text())?["data"].take()),
        other => Err(Failure::new(format!("{path}: {other}: {}", answer.text()))),
    }
}

/// Adds what operator and Prometheus have to say.
async fn explain(mesh: &Mesh, failure: Failure) -> Failure {
    let mut failure = failure;
    for (what, command) in [
        ("pods", "get pods,events -n monitoring -o wide"),
        ("the operator", "logs -n monitoring deployment/operator --tail=40"),
        ("Prometheus", "logs -n monitoring prometheus-mesh-0 --all-containers --tail=20"),
        ("its targets", "get --raw /api/v1/namespaces/monitoring/pods/prometheus-mesh-0:9090/proxy/api/v1/targets"),
    ] {
        let command: Vec<_> = command.split(' ').collect();
        let told = mesh.cluster.kubectl(&command).await.unwrap_or_else(|failure| failure.to_string());
        failure = failure.with_log(what, &told.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    failure
}
