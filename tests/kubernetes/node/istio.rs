//! Istio's mesh on the node, with its own control plane, injection, agent and redirection of traffic: namespaces move to
//! the shim one after the other, as the guide has it, and back. Its proxy's image is made of what is public of it in parts
//! (testkit's `ProgramImage::istio_proxy`): Envoy has none of Istio's own filters, so istiod is told to do without them.

use serde_json::{Value, json};
use testkit::{
    Failure,
    kubernetes::{Cluster, object},
    node::{KUBELET, Node, images, possible},
};
use tokio::time::{Instant, sleep};

use super::{
    logs,
    mesh::{HTTPBIN, Of, SLEEP, is_alone},
};
use crate::{istio::configure, stage::CHART};

/// Where the images are, in the node's containerd alone.
const HUB: &str = "localhost/istio";
const TAG: &str = "1";
const SIDECAR: &str = "localhost/sds-shim:sidecar";
/// Istio's container.
const PROXY: &str = "istio-proxy";

/// Without a sidecar.
const OUTSIDE: Of = ("outside", "sleep");

const ISTIOD: Of = ("istio-system", "istiod");

/// What istiod runs with: little, and without the filters that this Envoy does not have.
const VALUES: &str = "autoscaleEnabled=false,resources.requests.cpu=10m,resources.requests.memory=64Mi,\
                      telemetry.enabled=false,env.PILOT_ENABLE_ALPN_FILTER=false,\
                      env.PILOT_ENABLE_METADATA_EXCHANGE=false";

struct Mesh {
    cluster: Cluster,
    node: Node,
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes node istio-injector istiod pilot-agent` builds"]
async fn istios_mesh_moves_to_the_shim_and_back() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let (cluster, node) = Node::start().await?;
    println!("the node was ready after {:.1?}", node.started());
    let mesh = Mesh { cluster, node };
    match play(&mesh).await {
        Ok(()) => {
            drop(mesh.node);
            mesh.cluster.stop().await
        }
        Err(failure) => Err(mesh.explain(failure).await),
    }
}

async fn play(mesh: &Mesh) -> testkit::Result {
    mesh.node.load_istio(HUB, TAG, SIDECAR).await?;
    let (base, istiod) = ("target/istio-injector/base", "target/istio-injector/istiod");
    let values = format!("global.hub={HUB},global.tag={TAG},{VALUES}");
    let install = ["-n", "istio-system", "--create-namespace"];
    mesh.cluster.helm(&[&["install", "istio-base", base], &install[..]].concat()).await?;
    mesh.cluster.helm(&[&["install", "istiod", istiod, "--set", &values], &install[..]].concat()).await?;
    mesh.rolled_out(ISTIOD).await?;
    for (namespace, injection) in [("foo", "enabled"), ("bar", "enabled"), ("outside", "disabled")] {
        mesh.cluster.kubectl(&["create", "namespace", namespace]).await?;
        mesh.cluster.kubectl(&["label", "namespace", namespace, &format!("istio-injection={injection}")]).await?;
    }
    for of in [HTTPBIN, SLEEP, OUTSIDE] {
        mesh.deploy(of).await?;
    }
    mesh.calls(SLEEP).await?;
    // Nobody has asked for strictness yet.
    mesh.eventually("plaintext answered", async || Ok(mesh.call(OUTSIDE).await?.contains(" 200 ").then_some(())))
        .await?;

    mesh.chart(&["install", "--create-namespace"], "mode=istio").await?;
    configure(&mesh.cluster, "").await?;
    // One namespace, then both: who has moved and who has not call each other.
    mesh.moves("namespaces={foo}", &[SLEEP]).await?;
    mesh.is_served_by_the_shim(SLEEP).await?;
    mesh.calls(SLEEP).await?;
    mesh.moves("namespaces={foo,bar},istio.peerAuthentication=true", &[HTTPBIN]).await?;
    mesh.is_served_by_the_shim(HTTPBIN).await?;
    mesh.calls(SLEEP).await?;
    mesh.refuses_plaintext().await?;

    let before = mesh.serial(HTTPBIN).await?;
    mesh.shim(HTTPBIN, &["renew"]).await?;
    assert_ne!(mesh.serial(HTTPBIN).await?, before, "not renewed");
    mesh.envoy_has_it(HTTPBIN).await?;
    mesh.calls(SLEEP).await?;
    an_absent_istiod_is_reported(mesh).await?;

    mesh.moves("namespaces=null", &[SLEEP, HTTPBIN]).await?;
    for of in [SLEEP, HTTPBIN] {
        let pod = mesh.pod(of).await?;
        assert_eq!(proxy(&pod)["image"], format!("{HUB}/proxyv2:{TAG}"), "{} has not moved back", of.1);
    }
    mesh.calls(SLEEP).await?;
    logs::hold_no_secrets(&mesh.node)
}

/// Istio's container in a pod, beside the application or as a native sidecar.
fn proxy(pod: &Value) -> Value {
    let lists = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array().cloned().unwrap_or_default());
    lists.into_iter().flatten().find(|container| container["name"] == PROXY).unwrap_or_default()
}

/// istiod's pod ends and comes back; meanwhile what runs goes on with what it has.
async fn an_absent_istiod_is_reported(mesh: &Mesh) -> testkit::Result {
    let scale = async |replicas: &str| {
        mesh.cluster.kubectl(&["scale", "-n", ISTIOD.0, "deployment", ISTIOD.1, "--replicas", replicas]).await
    };
    scale("0").await?;
    mesh.cluster
        .kubectl(&["wait", "--for=delete", "pod", "-l", "app=istiod", "-n", ISTIOD.0, "--timeout=280s"])
        .await?;
    let Err(refused) = mesh.shim(HTTPBIN, &["renew"]).await else {
        return Err(Failure::new("a renewal without a CA succeeded"));
    };
    println!("without istiod: {refused}");
    assert!(refused.to_string().contains("istiod.istio-system.svc:15012"), "{refused}");
    assert!(refused.to_string().contains("still serving the current certificate"), "{refused}");
    mesh.calls(SLEEP).await?;
    scale("1").await?;
    mesh.rolled_out(ISTIOD).await?;
    mesh.eventually("renewed", async || Ok(mesh.shim(HTTPBIN, &["renew"]).await.ok().map(drop))).await?;
    mesh.envoy_has_it(HTTPBIN).await
}

impl Mesh {
    async fn chart(&self, verb: &[&str], values: &str) -> testkit::Result {
        let image = format!("istio.image={SIDECAR}");
        let words = ["sds-shim", CHART, "-n", "sds-shim", "--set", &image, "--set", values];
        self.cluster.helm(&[verb, &words[..]].concat()).await.map(drop)
    }

    /// Changes which namespaces have the shim, and makes the pods of these anew.
    async fn moves(&self, values: &str, all: &[Of]) -> testkit::Result {
        self.chart(&["upgrade", "--reset-then-reuse-values"], values).await?;
        let wanted = !values.contains("null");
        logs::hold_no_secrets(&self.node)?;
        for of in all {
            self.until_injected(*of, wanted).await?;
            let begun = Instant::now();
            self.cluster.kubectl(&["rollout", "restart", "-n", of.0, &format!("deployment/{}", of.1)]).await?;
            self.rolled_out(*of).await?;
            println!("{} of {} with {values}: ready after {:.1?}", of.1, of.0, begun.elapsed());
        }
        Ok(())
    }

    /// Nobody tells when a policy is in force.
    async fn until_injected(&self, (namespace, name): Of, wanted: bool) -> testkit::Result {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace },
            "spec": { "containers": [{ "name": name, "image": name }] },
        });
        self.eventually("the policy in force", async || {
            Ok(((proxy(&self.cluster.made(&pod).await?)["image"] == SIDECAR) == wanted).then_some(()))
        })
        .await
    }

    async fn deploy(&self, (namespace, name): Of) -> testkit::Result {
        let (image, command) = match name {
            "httpbin" => (images::HTTPBIN, json!(["/bin/go-httpbin", "-host", "0.0.0.0", "-port", "8080"])),
            _ => (images::CURL, json!(["/bin/sleep", "infinity"])),
        };
        let labels = json!({ "app": name });
        let container =
            json!({ "name": name, "image": image, "command": command, "securityContext": { "runAsUser": 1000 } });
        let pod = json!({ "serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [container] });
        let meta = json!({ "name": name, "namespace": namespace });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta },
            { "apiVersion": "v1", "kind": "Service", "metadata": meta,
              "spec": { "selector": labels, "ports": [{ "name": "http", "port": 8000, "targetPort": 8080 }] } },
            { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod },
            } },
        ] });
        self.cluster.kubectl_on(&list, &["apply", "-f", "-"]).await?;
        self.rolled_out((namespace, name)).await
    }

    async fn rolled_out(&self, (namespace, name): Of) -> testkit::Result {
        let deployment = format!("deployment/{name}");
        self.cluster.kubectl(&["rollout", "status", "--timeout=280s", "-n", namespace, &deployment]).await?;
        self.eventually("one pod alone", async || is_alone(&self.cluster, (namespace, name)).await).await
    }

    async fn pod(&self, (namespace, name): Of) -> Result<Value, Failure> {
        self.cluster.pod(namespace, &format!("app={name}")).await
    }

    /// Runs a command of the shim in Istio's container.
    async fn shim(&self, (namespace, name): Of, command: &[&str]) -> Result<String, Failure> {
        let deployment = format!("deployment/{name}");
        let exec = ["exec", "-n", namespace, &deployment, "-c", PROXY, "--", "sds-shim"];
        self.cluster.kubectl(&[&exec[..], command].concat()).await
    }

    /// What the application answers somebody, and curl's words beside it.
    async fn call(&self, from: Of) -> Result<String, Failure> {
        let curl = "curl -s -w ' %{http_code} %{errormsg}' http://httpbin.bar:8000/headers || true";
        let script = format!("kubectl -n {} exec deployment/{} -c {} -- {curl}", from.0, from.1, from.1);
        Ok(self.cluster.script(&script).await?.output)
    }

    /// Calls are answered, and the application is told who calls.
    async fn calls(&self, from: Of) -> testkit::Result {
        let caller = format!("URI=spiffe://cluster.local/ns/{}/sa/{}", from.0, from.1);
        let called = format!("By=spiffe://cluster.local/ns/{}/sa/{}", HTTPBIN.0, HTTPBIN.1);
        self.eventually("a call over mutual TLS", async || {
            let answer = self.call(from).await?;
            let is_right = answer.contains(&caller) && answer.contains(&called) && answer.contains(" 200 ");
            if !is_right {
                println!("not yet: {answer}");
            }
            Ok(is_right.then_some(()))
        })
        .await
    }

    async fn refuses_plaintext(&self) -> testkit::Result {
        self.eventually("plaintext refused", async || {
            let answer = self.call(OUTSIDE).await?;
            Ok(answer.contains(" 000 ").then_some(()))
        })
        .await
    }

    /// Istio's agent has stepped aside, and Envoy's certificate is that of the shim.
    async fn is_served_by_the_shim(&self, of: Of) -> testkit::Result {
        assert_eq!(proxy(&self.pod(of).await?)["image"], SIDECAR);
        let deployment = format!("deployment/{}", of.1);
        let log = self.cluster.kubectl(&["logs", "-n", of.0, &deployment, "-c", PROXY]).await?;
        assert!(log.contains("Existing workload SDS socket found"), "{log}");
        let status = object(&self.shim(of, &["status", "--json"]).await?)?;
        let id = format!("spiffe://cluster.local/ns/{}/sa/{}", of.0, of.1);
        assert_eq!(status["workloads"][0]["identity"], id, "{status}");
        // Some kernels have no secret memory.
        let level = &status["memory"]["level"];
        assert!(["secret", "locked"].iter().any(|expected| level == expected), "{status}");
        self.envoy_has_it(of).await
    }

    /// The serial number of the certificate that the shim serves.
    async fn serial(&self, of: Of) -> Result<String, Failure> {
        let status = object(&self.shim(of, &["status", "--json"]).await?)?;
        let resources = status["workloads"][0]["resources"].as_array().cloned().unwrap_or_default();
        let served = resources.iter().find(|resource| resource["name"] == "default");
        let serial = served.and_then(|served| served["certificates"][0]["serial"].as_str());
        serial.map(str::to_owned).ok_or_else(|| Failure::new(format!("no certificate in {status}")))
    }

    /// Envoy has the certificate that the shim serves, as Istio's agent lets it tell.
    async fn envoy_has_it(&self, of: Of) -> testkit::Result {
        let serial = self.serial(of).await?;
        let deployment = format!("deployment/{}", of.1);
        let ask = ["exec", "-n", of.0, &deployment, "-c", PROXY, "--", "pilot-agent", "request", "GET", "certs"];
        self.eventually("the certificate in Envoy", async || {
            Ok(self.cluster.kubectl(&ask).await?.contains(&format!("\"{serial}\"")).then_some(()))
        })
        .await
    }

    async fn eventually(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<Option<()>, Failure>,
    ) -> testkit::Result {
        let deadline = Instant::now() + KUBELET;
        loop {
            // What fails once, such as a webhook whose pod has just ended, is looked at again.
            let seen = look().await;
            match seen {
                Ok(Some(())) => return Ok(()),
                Err(failure) if Instant::now() > deadline => return Err(failure.context(what)),
                Ok(None) if Instant::now() > deadline => {
                    return Err(Failure::new(format!("not {what} within {KUBELET:?}")));
                }
                _ => sleep(10 * testkit::POLL).await,
            }
        }
    }

    /// Adds what everybody has to say.
    async fn explain(&self, failure: Failure) -> Failure {
        let mut failure = failure;
        for (namespace, name, container) in [
            (ISTIOD.0, ISTIOD.1, "discovery"),
            (SLEEP.0, SLEEP.1, PROXY),
            (HTTPBIN.0, HTTPBIN.1, PROXY),
            (SLEEP.0, SLEEP.1, "istio-init"),
        ] {
            let log = ["logs", "-n", namespace, &format!("deployment/{name}"), "-c", container];
            let log = self.cluster.kubectl(&log).await.unwrap_or_else(|failure| failure.to_string());
            let log: Vec<_> = log.lines().map(str::to_owned).collect();
            failure = failure.with_log(&format!("{container} of {name}"), &log);
        }
        let pods = ["get", "pods,events", "-A", "-o", "wide"];
        let pods = [self.cluster.kubectl(&pods).await.unwrap_or_else(|failure| failure.to_string())];
        self.node.explain(failure.with_log("pods and events", &pods))
    }
}
