//! The four-call scene in pods: `sleep` and `httpbin` in the namespaces `foo` and `bar`, each a pod of containers (the
//! shim, an Envoy, the application) as the API server hands them to kubelet after the chart's injection. Where the
//! machine does not let us start containers nothing can be tested, which is said past the test harness.

mod scene;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    container::{SHIM, possible},
    development_ca::{Fault, Outcome as CaOutcome},
    envoy::Admin,
    http,
    kubelet::{Exit, Node, RunningPod},
    scan::scan,
};
use tokio::net::TcpStream;
use tonic::Code;

use scene::{Scene, Way};

/// The port that the sidecar has for others.
const INBOUND: u16 = 15006;
/// The port that it has for probes.
const HEALTH: u16 = 15021;
/// Where the root certificate is that a pod is given.
const ROOT: &str = "/var/run/secrets/istio";

#[tokio::test]
async fn four_pods_call_each_other_over_mutual_tls_without_a_secret_in_any_mount() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let scene = Scene::start(Way::Listeners).await?;
    let mesh = scene.mesh().await?;
    for pod in mesh.pods() {
        println!("{}: {:?}", pod.name(), pod.containers().collect::<Vec<_>>());
        assert_eq!(pod.containers().take(2).collect::<Vec<_>>(), ["sds-shim", "sds-shim-envoy"]);
        shim_is_confined(pod).await?;
        nothing_private_is_mounted(pod)?;
    }
    mesh.calls().await?;
    for server in &mesh.servers {
        let handshakes = admin(server)?.stats(".ssl.handshake").await?;
        let inbound = handshakes.iter().find(|(name, _)| name.starts_with("listener.") && name.contains("15006"));
        assert_eq!(inbound.map(|(_, count)| *count), Some(2), "{handshakes:?}");
        refuses_plaintext(&scene.node, server).await?;
        answers_probes(&scene.node, server).await?;
        // What comes past the sidecar: the application listens on the pod's loopback address alone.
        assert!(http_get(&scene.node, server, 8080).await.is_err());
    }
    let first = &mesh.clients[0];
    token_is_rewritten(first).await?;
    mesh.calls().await?;
    mesh.delete(&scene.node).await?;
    scene.leaves_nothing().await
}

/// As with Istio's CNI plugin: nobody is told of the sidecar, iptables leads there what goes out and what comes in.
#[tokio::test]
async fn the_same_pods_call_each_other_where_iptables_leads_through_the_sidecar() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let scene = Scene::start(Way::Iptables).await?;
    let mesh = scene.mesh().await?;
    mesh.calls().await?;
    for server in &mesh.servers {
        assert_eq!(
            server.exec("httpbin", &["/usr/bin/curl", "--include", "http://127.0.0.1:8080/ip"]).await?.code,
            Some(0)
        );
        // Every port is the sidecar's, also the application's own.
        for port in [8080, 80] {
            assert!(http_get(&scene.node, server, port).await.is_err(), "port {port}");
        }
    }
    mesh.delete(&scene.node).await?;
    scene.leaves_nothing().await
}

#[tokio::test]
async fn the_application_starts_only_when_the_certificate_is_there() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let scene = Scene::start(Way::Listeners).await?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "not yet".to_owned())));
    // Pods of its namespace are told of it in variables that look like the shim's own.
    scene.node.service(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "sds-shim", "namespace": "foo" },
        "spec": { "ports": [{ "port": 80 }] },
    }))?;
    let mut manifest = scene.manifest("sleep", "foo")?;
    // The shim with its own profile, under which the probes' commands run as well.
    manifest["spec"]["initContainers"][0]["securityContext"]["seccompProfile"] =
        json!({ "type": "Localhost", "localhostProfile": "sds-shim.json" });
    let mut starting = Box::pin(scene.node.run(&manifest));
    tokio::select! {
        pod = &mut starting => panic!("it started without a certificate: {:?}", pod.map(|pod| pod.name())),
        () = scene.ca.wait_for_outcomes(3) => {}
    }
    assert_eq!(scene.node.containers()?, ["sleep.foo/POD", "sleep.foo/sds-shim"].map(str::to_owned).into());
    scene.ca.set_fault(None);
    let pod = starting.await?;
    assert_eq!(scene.node.containers()?.len(), 4);
    let issued = |outcome: &CaOutcome| matches!(outcome, CaOutcome::Issued { spiffe_id: id, .. } if *id == testkit::workload::spiffe_id("foo", "sleep"));
    assert_eq!(scene.ca.calls().iter().filter(|call| issued(&call.outcome)).count(), 1);
    let environment = format!("/proc/{}/environ", pod.pid("sds-shim-envoy")?);
    let environment = fs::read_to_string(&environment).or_fail(format!("read {environment}"))?;
    assert!(environment.contains("SDS_SHIM_SERVICE_HOST=10.96."), "{environment}");
    // A pod that is not deleted in order is removed as well.
    drop(pod);
    scene.leaves_nothing().await
}

#[tokio::test]
async fn a_pod_that_asks_for_what_is_not_understood_is_refused() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let scene = Scene::start(Way::Listeners).await?;
    let cases: [(&str, Value, &str); 5] = [
        ("/spec/volumes/0", json!({ "name": "key", "secret": { "secretName": "key" } }), "no Secret key"),
        ("/spec/volumes/0", json!({ "name": "host", "hostPath": { "path": "/" } }), "unknown field `hostPath`"),
        ("/spec/containers/0/securityContext", json!({ "privileged": true }), "privileged"),
        ("/spec/containers/0/image", json!("example.com/other"), "no image example.com/other"),
        ("/spec/containers/0/securityContext", json!({ "runAsUser": 0, "runAsNonRoot": true }), "runAsNonRoot"),
    ];
    for (place, value, told) in cases {
        let mut pod = scene.manifest("sleep", "foo")?;
        *pod.pointer_mut(place).expect("it is in the manifest") = value;
        match scene.node.run(&pod).await {
            Ok(pod) => panic!("{} runs with {place}", pod.name()),
            Err(failure) => assert!(failure.what().contains(told), "{failure}"),
        }
    }
    scene.leaves_nothing().await
}

/// The properties that the container's manifest asks for, seen from outside and told by the shim itself.
async fn shim_is_confined(pod: &RunningPod) -> testkit::Result {
    let container = pod.container("sds-shim")?;
    for (name, value) in [
        ("Uid", "1337\t1337\t1337\t1337"),
        ("Gid", "1337\t1337\t1337\t1337"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("VmSwap", "0"),
    ] {
        assert_eq!(container.status(name).await?, value, "{name} in {}", pod.name());
    }
    let told = testkit::container::podman(&[
        "container",
        "inspect",
        "--format",
        "{{.HostConfig.Memory}} {{.HostConfig.ReadonlyRootfs}} {{.State.OOMKilled}}",
        container.name(),
    ])?;
    assert_eq!(told, format!("{} true false", 16 << 20));
    let memory = &status(pod).await?["memory"];
    assert_eq!(memory["level"], "secret", "{memory}");
    assert_eq!(memory["missing"], json!([]), "{memory}");
    assert!(memory["mapped_bytes"].as_u64() <= memory["limit_bytes"].as_u64(), "{memory}");
    Ok(())
}

async fn status(pod: &RunningPod) -> Result<Value, Failure> {
    let output = pod.exec("sds-shim", &[SHIM, "status", "--json"]).await?;
    serde_json::from_str(&output.lines.join("\n")).or_fail("read the shim's status")
}

/// Every file that a container of the pod sees and that does not come from its image.
fn nothing_private_is_mounted(pod: &RunningPod) -> testkit::Result {
    const NO_FILES: [&str; 7] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "overlay"];
    for container in pod.containers() {
        let name = pod.container(container)?.name();
        let upper =
            testkit::container::podman(&["container", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", name])?;
        let written = scan(Path::new(&upper)).or_fail(format!("search {upper}"))?;
        assert_eq!(written.findings, [], "in the root of {container} of {}", pod.name());
        let process = format!("/proc/{}", pod.pid(container)?);
        let mounts = fs::read_to_string(format!("{process}/mounts")).or_fail("read the mounts")?;
        let (mut searched, mut found) = (0, 0);
        for line in mounts.lines() {
            let [_, place, kind, ..] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let path = format!("{process}/root{place}");
            let kernels = ["/proc/", "/sys/"].iter().any(|prefix| place.starts_with(prefix));
            if kernels || NO_FILES.contains(&kind) || !Path::new(&path).is_dir() {
                continue;
            }
            searched += 1;
            for finding in scan(Path::new(&path)).or_fail(format!("search {place}"))?.findings {
                found += 1;
                // The one thing that is given: whom to trust.
                assert!(place == ROOT && finding.what == "certificate (PEM)", "{}: {finding:?}", pod.name());
            }
        }
        assert!(searched > 0, "no mount of {container} was searched");
        assert_eq!(found > 0, container == "sds-shim", "the root certificate shows that the search finds things");
    }
    Ok(())
}

/// A probe from the node, which stands for a pod outside of the mesh.
async fn refuses_plaintext(node: &Node, server: &RunningPod) -> testkit::Result {
    let admin = admin(server)?;
    let before = refused(&admin).await?;
    assert!(http_get(node, server, INBOUND).await.is_err(), "{} answers plaintext", server.name());
    assert_eq!(refused(&admin).await?, before + 1);
    Ok(())
}

async fn refused(admin: &Admin) -> Result<u64, Failure> {
    let counters = admin.stats(".ssl.connection_error").await?;
    Ok(counters.iter().filter(|(name, _)| name.starts_with("listener.")).map(|(_, count)| count).sum())
}

/// kubelet's, of the paths that are named for it and of nothing else.
async fn answers_probes(node: &Node, server: &RunningPod) -> testkit::Result {
    for (path, status) in [("/app-health/ip", 200), ("/app-health/headers", 404), ("/ip", 404)] {
        assert_eq!(http_get_path(node, server, HEALTH, path).await?.status, status, "{path}");
    }
    Ok(())
}

async fn http_get(node: &Node, pod: &RunningPod, port: u16) -> Result<http::Answer, Failure> {
    http_get_path(node, pod, port, "/ip").await
}

async fn http_get_path(node: &Node, pod: &RunningPod, port: u16, path: &'static str) -> Result<http::Answer, Failure> {
    let address = (pod.address(), port);
    let answer = node.inside(async move {
        let stream = TcpStream::connect(address).await.or_fail("connect")?;
        http::get(stream, "httpbin", path).await
    });
    answer.await?
}

fn admin(pod: &RunningPod) -> Result<Admin, Failure> {
    Ok(Admin::at(&pod.volume("sds-shim-admin")?.join("admin.sock")))
}

/// kubelet brings a new token; the shim's next call carries that one.
async fn token_is_rewritten(pod: &RunningPod) -> testkit::Result {
    let file = pod.volume("sds-shim-token")?.join("istio-token");
    let read = || fs::read_to_string(&file).or_fail("read the token");
    let (before, expiry) = (read()?, status(pod).await?["workloads"][0]["token_not_after"].clone());
    pod.refresh()?;
    assert_ne!(read()?, before);
    let renewed = pod.exec("sds-shim", &[SHIM, "renew"]).await?;
    assert_eq!(renewed.code, Some(0), "{renewed:?}");
    let told = status(pod).await?["workloads"][0]["token_not_after"].clone();
    assert!(told.is_string() && told != expiry, "{told} after {expiry}");
    Ok(())
}

fn network_namespace(pod: &RunningPod, container: &str) -> Result<PathBuf, Failure> {
    let path = format!("/proc/{}/ns/net", pod.pid(container)?);
    fs::read_link(&path).or_fail(format!("read {path}"))
}

impl scene::Mesh {
    /// `kubectl delete`: the application goes first, then Envoy, then the shim.
    async fn delete(self, node: &Node) -> testkit::Result {
        for pod in self.into_pods() {
            let (name, application) = (pod.name(), pod.containers().nth(2).unwrap_or_default().to_owned());
            let namespaces: BTreeSet<_> =
                pod.containers().map(|one| network_namespace(&pod, one)).collect::<Result<_, _>>()?;
            assert_eq!(namespaces.len(), 1, "{namespaces:?}");
            let exits = pod.delete(node).await?;
            println!("{name} is deleted: {exits:?}");
            let exit = |container: &str, code| Exit { container: container.to_owned(), code: Some(code) };
            // sleep does not heed SIGTERM, as the first process of its container.
            let code = if application == "sleep" { 137 } else { 0 };
            assert_eq!(exits, [exit(&application, code), exit("sds-shim-envoy", 0), exit("sds-shim", 0)]);
        }
        Ok(())
    }
}
