//! The chart's mesh on a node: `sleep` in `foo` calls `httpbin` in `bar`.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, POLL,
    development_ca::{Issued, Leaf, Pki, state},
    http,
    kubernetes::Cluster,
    node::{KUBELET, Node},
    scratch::Scratch,
};
use tokio::net::TcpStream;

use super::logs;
use crate::stage::{CHART, authority, simple_pod};

/// The shim's container.
pub(crate) const SHIM: &str = "sds-shim";
/// Envoy's.
pub(crate) const ENVOY: &str = "sds-shim-envoy";

/// How a pod's part of the mesh is named: namespace, application.
pub(crate) type Of = (&'static str, &'static str);
pub(crate) const SLEEP: Of = ("foo", "sleep");
pub(crate) const HTTPBIN: Of = ("bar", "httpbin");

pub(crate) struct Mesh {
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    pki: Pki,
    scratch: Scratch,
    /// What helm was told of the release.
    chart: Vec<String>,
}

impl Mesh {
    /// A node with the chart and these values besides the samples', and who calls and is called.
    pub(crate) async fn start(values: &[&str]) -> Result<Self, Failure> {
        let (cluster, node) = Node::start().await?;
        println!("the node was ready after {:.1?}", node.started());
        for namespace in ["foo", "bar"] {
            cluster.restricted_namespace(namespace).await?;
        }
        let samples = format!("{CHART}/samples/values.yaml");
        let set = values.iter().flat_map(|value| ["--set", value]);
        let chart: Vec<_> = ["sds-shim", CHART, "-n", "sds-shim", "-f", &samples].into_iter().chain(set).collect();
        cluster.helm(&[&["install", "--create-namespace"], &chart[..]].concat()).await?;
        let chart = chart.into_iter().map(str::to_owned).collect();
        let scratch = Scratch::new("kubernetes-node")?;
        let (pki, _) = state::open_or_create(&authority(&cluster, scratch.path()).await?).or_fail("read the CA")?;
        let mesh = Self { cluster, node, pki, scratch, chart };
        for of in [HTTPBIN, SLEEP] {
            mesh.deploy(of, "sds-shim-token").await?;
        }
        for of in [HTTPBIN, SLEEP] {
            mesh.rolled_out(of).await?;
            mesh.tell_starts(of).await?;
        }
        Ok(mesh)
    }

    /// The release as it was at the start, but with these values as well.
    pub(crate) async fn upgrade(&self, values: &Value) -> testkit::Result {
        let path = self.cluster.path().join("values.json");
        std::fs::write(&path, values.to_string()).or_fail("write the values")?;
        let path = path.display().to_string();
        let chart: Vec<_> = self.chart.iter().map(String::as_str).collect();
        self.cluster.helm(&[&["upgrade", "--reset-values"], &chart[..], &["-f", &path]].concat()).await.map(drop)
    }

    /// Makes one of the samples, once pods get sidecars with this in them.
    pub(crate) async fn deploy(&self, of: Of, expected: &str) -> testkit::Result {
        self.injects(of, expected).await?;
        let sample = format!("{CHART}/samples/{}.yaml", of.1);
        self.cluster.kubectl(&["apply", "-n", of.0, "-f", &sample]).await.map(drop)
    }

    /// Waits until pods get sidecars with this in them: nobody tells when a policy is in force.
    pub(crate) async fn injects(&self, of: Of, expected: &str) -> testkit::Result {
        let begun = Instant::now();
        loop {
            match self.injected(of).await {
                Ok(pod) if pod.to_string().contains(expected) => return Ok(()),
                _ if begun.elapsed() < KUBELET => tokio::time::sleep(POLL).await,
                Ok(pod) => return Err(Failure::new(format!("there is no {expected} in {pod}"))),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// What a pod would become beside one of them.
    pub(crate) async fn injected(&self, (namespace, _): Of) -> Result<Value, Failure> {
        let mut pod = simple_pod("default");
        pod["metadata"]["namespace"] = json!(namespace);
        self.cluster.made(&pod).await
    }

    /// Deletes one of them, and waits until its pods are gone.
    pub(crate) async fn remove(&self, (namespace, name): Of) -> testkit::Result {
        logs::hold_no_secrets(&self.node)?;
        self.cluster.kubectl(&["delete", "deployment", name, "-n", namespace, "--ignore-not-found"]).await?;
        let label = format!("app={name}");
        let wait = ["wait", "--for=delete", "pod", "-l", &label, "-n", namespace, "--timeout=280s"];
        self.cluster.kubectl(&wait).await.map(drop)
    }

    /// A certificate of the mesh's CA for somebody's key, with what leads to the root.
    pub(crate) fn certify(&self, leaf: &Leaf, key: &str) -> Result<String, Failure> {
        Ok(self.pki.certify(leaf, key).or_fail("certify a key")? + &self.pki.intermediate_pem())
    }

    pub(crate) async fn stop(self) -> testkit::Result {
        drop(self.node);
        self.cluster.stop().await?;
        self.scratch.remove()
    }

    /// Adds what the node and the shims have to say.
    pub(crate) async fn explain(&self, failure: Failure) -> Failure {
        let mut failure = failure;
        for (namespace, name) in [SLEEP, HTTPBIN] {
            let pods = ["get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].status.initContainerStatuses}"];
            let seen = [self.cluster.kubectl(&pods).await.unwrap_or_else(|failure| failure.to_string())];
            failure = failure.with_log(&format!("{namespace}'s sidecars"), &seen);
            let log = ["logs", "-n", namespace, &format!("deployment/{name}"), "-c", SHIM];
            let log = self.cluster.kubectl(&log).await.unwrap_or_else(|failure| failure.to_string());
            let log: Vec<_> = log.lines().map(str::to_owned).collect();
            failure = failure.with_log(&format!("the shim of {name}"), &log);
        }
        self.node.explain(failure)
    }

    /// Waits until a deployment's pods are ready.
    pub(crate) async fn rolled_out(&self, (namespace, name): Of) -> testkit::Result {
        let deployment = format!("deployment/{name}");
        let wait = ["rollout", "status", "--timeout=280s", "-n", namespace, &deployment];
        match self.cluster.kubectl(&wait).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.explain(failure).await),
        }
    }

    /// The pod of one of them.
    pub(crate) async fn pod(&self, (namespace, name): Of) -> Result<Value, Failure> {
        self.cluster.pod(namespace, &format!("app={name}")).await
    }

    /// What `sds-shim status` says in its pod, about its only identity.
    pub(crate) async fn status(&self, of: Of) -> Result<Value, Failure> {
        let told = self.shim(of, &["status", "--json"]).await?;
        Ok(testkit::kubernetes::object(&told)?["workloads"][0].take())
    }

    /// Runs a command of the shim in its container.
    pub(crate) async fn shim(&self, (namespace, name): Of, command: &[&str]) -> Result<String, Failure> {
        let deployment = format!("deployment/{name}");
        let exec = ["exec", "-n", namespace, &deployment, "-c", SHIM, "--", "sds-shim"];
        self.cluster.kubectl(&[&exec[..], command].concat()).await
    }

    /// The code that httpbin answers `sleep` with.
    pub(crate) async fn call(&self, pod: &str) -> Result<String, Failure> {
        let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-x", "http://127.0.0.1:15001"];
        let exec = ["exec", "-n", SLEEP.0, pod, "-c", "sleep", "--"];
        self.cluster.kubectl(&[&exec[..], &curl, &["http://httpbin.bar:8000/ip"]].concat()).await
    }

    /// The token in its volume.
    pub(crate) async fn token(&self, of: Of) -> Result<String, Failure> {
        let pod = self.pod(of).await?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let path = format!("/run/node/kubelet/pods/{uid}/volumes/kubernetes.io~projected/sds-shim-token/istio-token");
        self.node.exec(&["cat", &path]).await
    }

    /// SIGKILL for the process of one of its containers.
    pub(crate) async fn kill(&self, of: Of, container: &str) -> testkit::Result {
        let id = container_id(&status_of(&self.pod(of).await?, container));
        self.node.ctr(&["tasks", "kill", "--signal", "SIGKILL", &id]).await.map(drop)
    }

    /// The first process of one of its containers, as the node counts processes.
    pub(crate) async fn process(&self, of: Of, container: &str) -> Result<String, Failure> {
        let id = container_id(&status_of(&self.pod(of).await?, container));
        let tasks = self.node.ctr(&["tasks", "ls"]).await?;
        let mut tasks = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let pid =
            tasks.find_map(|task| (task.first() == Some(&id.as_str())).then(|| task.get(1).map(|pid| pid.to_string())));
        pid.flatten().ok_or_else(|| Failure::new(format!("{container} of {} does not run", of.1)))
    }

    /// The shim's metrics (value `metrics.enabled`).
    pub(crate) async fn metrics(&self, of: Of) -> Result<String, Failure> {
        metrics_at(address(&self.pod(of).await?)?).await
    }

    /// A certificate of the mesh's CA for `sleep`, and its root.
    pub(crate) fn client(&self) -> (Issued, String) {
        let ttl = Duration::from_secs(24 * 3600);
        (self.pki.issue(&Leaf::workload("spiffe://cluster.local/ns/foo/sa/sleep", ttl)), self.pki.root_pem())
    }

    /// Looks until there is something to see; returns it and how long that took. `what` is what there should be.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        bound: Duration,
        mut look: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    ) -> Result<(T, Duration), Failure> {
        let begun = Instant::now();
        loop {
            let seen = match look().await {
                Ok(seen) => seen,
                Err(failure) => return Err(self.explain(failure.context(what)).await),
            };
            match (seen, begun.elapsed()) {
                (Some(seen), took) => return Ok((seen, took)),
                (None, took) if took > bound => {
                    return Err(self.explain(Failure::new(format!("not {what} within {bound:?}"))).await);
                }
                // What takes minutes need not be told to the millisecond, and each look is a process or two.
                (None, took) => tokio::time::sleep(POLL.max(took / 100)).await,
            }
        }
    }

    /// Looks at a pod until something is so, and says how long that took.
    pub(crate) async fn until(&self, of: Of, what: &str, look: impl Fn(&Value) -> bool) -> Result<Duration, Failure> {
        let what = format!("{} {what}", of.1);
        let look = async || Ok(look(&self.pod(of).await?).then_some(()));
        self.eventually(&what, KUBELET, look).await.map(|((), took)| took)
    }
}

/// The status of one of a pod's containers.
pub(crate) fn status_of(pod: &Value, name: &str) -> Value {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    lists.into_iter().flatten().flatten().find(|one| one["name"] == name).cloned().unwrap_or_default()
}

/// The metrics of the shim in the pod with this address.
pub(crate) async fn metrics_at(address: IpAddr) -> Result<String, Failure> {
    let stream = TcpStream::connect((address, 15022)).await.or_fail("connect to the metrics")?;
    Ok(http::get(stream, &address.to_string(), "/metrics").await?.text())
}

/// What containerd calls it.
pub(crate) fn container_id(container: &Value) -> String {
    container["containerID"].as_str().unwrap_or_default().trim_start_matches("containerd://").to_owned()
}

/// The pod's own address.
pub(crate) fn address(pod: &Value) -> Result<IpAddr, Failure> {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    address.parse().or_fail(format!("read the address {address:?}"))
}

/// Something to see once a deployment has one pod: until the one before is gone, commands may reach either.
pub(crate) async fn is_alone(cluster: &Cluster, (namespace, name): Of) -> Result<Option<()>, Failure> {
    let label = format!("app={name}");
    let pods = cluster.kubectl(&["get", "pods", "-n", namespace, "-l", &label, "-o", "name"]).await?;
    Ok((pods.lines().count() == 1).then_some(()))
}

/// Whether all of a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// How a container ended, if it has.
pub(crate) fn terminated(pod: &Value, name: &str) -> Value {
    let status = status_of(pod, name);
    let ends = ["state", "lastState"].map(|which| status[which]["terminated"].clone());
    ends.into_iter().find(|end| !end.is_null()).unwrap_or_default()
}

/// How often a container has been started again.
pub(crate) fn restarts(pod: &Value, name: &str) -> u64 {
    status_of(pod, name)["restartCount"].as_u64().unwrap_or(0)
}

impl Mesh {
    /// Prints how long after the shim's start Envoy's was, and that of the application.
    pub(crate) async fn tell_starts(&self, of: Of) -> testkit::Result {
        let pod = self.pod(of).await?;
        let containers = [SHIM, ENVOY, of.1].map(|name| status_of(&pod, name));
        let log = self.node.log("containerd");
        let [shim, envoy, application] = containers.map(|container| {
            let id = container_id(&container);
            let line = log.iter().find(|line| line.contains(&format!("StartContainer for \\\"{id}\\\" returns")));
            line.and_then(|line| second_of_day(line)).unwrap_or_default()
        });
        println!(
            "{}: Envoy started {:.1} s after the shim, its application {:.1} s",
            of.1,
            envoy - shim,
            application - shim
        );
        Ok(())
    }
}

/// Of a line that begins with `time="2026-01-02T03:04:05.678901234Z"`.
fn second_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.strip_prefix("time=\"")?.split_once('T')?;
    let mut parts = time.split_once('Z')?.0.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}
