//! The chart's NetworkPolicy, enforced by kube-router: an application that listens on all addresses is reached by its
//! sidecar alone.

use std::path::PathBuf;

use serde_json::json;
use testkit::{
    Failure,
    node::{KUBELET, images},
    workspace,
};

use super::{
    mesh::{HTTPBIN, Mesh, Of, address},
    upgrade::template,
};
use crate::stage::simple_pod;

/// Who is not in the mesh.
const OUTSIDE: Of = ("outside", "caller");
const APPLICATION: u16 = 8080;

/// What curl says of a port.
#[derive(Debug, PartialEq, Eq)]
enum Port {
    Answers,
    /// Somebody accepts connections, and has no answer to plaintext.
    Open,
    Closed,
}

pub(crate) async fn a_network_policy_leaves_the_sidecars_ports_alone_open(mesh: &Mesh) -> testkit::Result {
    let arguments = ["-host", "0.0.0.0", "-port", "8080"];
    template(mesh, HTTPBIN, &json!({ "containers": [{ "name": HTTPBIN.1, "args": arguments }] })).await?;
    caller(mesh).await?;
    let program = program()?.display().to_string();
    let command = [
        &program,
        "--kubeconfig=/run/node/admin.kubeconfig",
        "--hostname-override=node1",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-loadbalancer=false",
        "--service-cluster-ip-range=10.96.0.0/16",
    ];
    let mut enforcer = mesh.node.start_program("kube-router", &command)?;
    until(mesh, APPLICATION, Port::Answers).await?;

    mesh.upgrade(&json!({ "mutualTLS": { "networkPolicy": true } })).await?;
    if let Err(failure) = until(mesh, APPLICATION, Port::Closed).await {
        return Err(enforcer.explain(failure));
    }
    let open = [(15006, Port::Open), (15021, Port::Answers), (15022, Port::Answers)];
    for (port, expected) in open {
        assert_eq!(port_of(mesh, port).await?, expected, "port {port}");
    }
    assert_eq!(mesh.call("deployment/sleep").await?, "200");
    println!("a NetworkPolicy: port {APPLICATION} is closed to others, the sidecars' are open, and calls go on");

    mesh.upgrade(&json!({})).await?;
    until(mesh, APPLICATION, Port::Answers).await?;
    enforcer.terminate().await?;
    // Once its rules are gone it crashes where the kernel has no IPVS.
    let _ = mesh.node.exec(&[&program, "--cleanup-config"]).await;
    mesh.cluster.kubectl(&["delete", "namespace", OUTSIDE.0]).await.map(drop)
}

fn program() -> Result<PathBuf, Failure> {
    let path = workspace().join("target/kube-router/kube-router");
    path.exists().then_some(path).ok_or_else(|| Failure::new("kube-router is missing: run `make kube-router`"))
}

/// Somebody who is not of the mesh.
async fn caller(mesh: &Mesh) -> testkit::Result {
    mesh.cluster.restricted_namespace(OUTSIDE.0).await?;
    let mut pod = simple_pod("default");
    pod["metadata"] = json!({ "name": OUTSIDE.1, "namespace": OUTSIDE.0 });
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!(images::CURL);
    container["command"] = json!(["/bin/sleep", "infinity"]);
    container["securityContext"]["runAsUser"] = json!(1000);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    mesh.cluster.create(&pod).await?;
    let ready = ["wait", "--for=condition=Ready", "--timeout=280s", "-n", OUTSIDE.0, "pod", OUTSIDE.1];
    mesh.cluster.kubectl(&ready).await.map(drop)
}

async fn until(mesh: &Mesh, port: u16, expected: Port) -> testkit::Result {
    let look = async || Ok((port_of(mesh, port).await? == expected).then_some(()));
    mesh.eventually(&format!("port {port} {expected:?}"), KUBELET, look).await.map(drop)
}

/// What the caller finds at one of httpbin's ports.
async fn port_of(mesh: &Mesh, port: u16) -> Result<Port, Failure> {
    let url = format!("http://{}:{port}/ready", address(&mesh.pod(HTTPBIN).await?)?);
    let curl = "curl -s -o /dev/null --connect-timeout 2 --max-time 10 -w '%{num_connects} %{http_code}'";
    let script = format!("kubectl exec -n {} {} -- {curl} {url} || true", OUTSIDE.0, OUTSIDE.1);
    let told = mesh.cluster.script(&script).await?.output;
    match told.as_str() {
        "0 000" => Ok(Port::Closed),
        "1 000" => Ok(Port::Open),
        told if told.starts_with("1 ") => Ok(Port::Answers),
        told => Err(Failure::new(format!("curl says {told:?} of {url}"))),
    }
}
