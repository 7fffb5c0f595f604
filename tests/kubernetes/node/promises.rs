//! What the chart promises of its pods, seen from the node: how the shim is confined, that no mount holds a key, that
//! nothing but Envoy is reached from outside, and in which order containers start and end.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, http,
    kubernetes::object,
    scan::{Finding, inspect, scan},
};
use tokio::net::TcpStream;

use super::{
    mesh::{ENVOY, HTTPBIN, Mesh, Of, SHIM, SLEEP, address, container_id, status_of, terminated},
    traffic,
};

/// Where the root certificate is that a pod is given.
const ROOT: &str = "/var/run/secrets/istio";
/// File systems whose files are the kernel's.
const KERNELS: [&str; 7] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "nsfs"];

const APPLICATION: u16 = 8080;
const INBOUND: u16 = 15006;
const HEALTH: u16 = 15021;

pub(crate) async fn pods_keep_what_the_chart_promises(mesh: &Mesh) -> testkit::Result {
    for of in [SLEEP, HTTPBIN] {
        started_in_order(mesh, of).await?;
        shim_is_confined(mesh, of).await?;
        nothing_private_is_mounted(mesh, of).await?;
    }
    only_envoy_is_reached(mesh).await
}

/// The names of a pod's containers, in the order of their start.
fn containers(pod: &Value) -> Vec<&str> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    lists.into_iter().flatten().flatten().filter_map(|container| container["name"].as_str()).collect()
}

/// Fails unless containerd has logged this of its containers, one after the other.
fn logged(mesh: &Mesh, events: &[String]) -> testkit::Result {
    let log = mesh.node.log("containerd");
    let mut lines = log.iter();
    for event in events {
        if !lines.any(|line| line.contains(event)) {
            let failure = Failure::new(format!("{event} does not come after those before it in {events:?}"));
            return Err(mesh.node.explain(failure));
        }
    }
    Ok(())
}

async fn started_in_order(mesh: &Mesh, of: Of) -> testkit::Result {
    let pod = mesh.pod(of).await?;
    assert_eq!(containers(&pod), [SHIM, ENVOY, of.1]);
    let events = containers(&pod).into_iter().flat_map(|name| {
        let id = container_id(&status_of(&pod, name));
        ["", " returns successfully"].map(|end| format!("StartContainer for \\\"{id}\\\"{end}"))
    });
    logged(mesh, &events.collect::<Vec<_>>())
}

/// As the container's manifest asks for it, and as the shim itself says.
async fn shim_is_confined(mesh: &Mesh, of: Of) -> testkit::Result {
    let pid = mesh.process(of, SHIM).await?;
    let read = |name: &str| {
        let path = mesh.node.path(&format!("/proc/{pid}/{name}"));
        fs::read_to_string(&path).or_fail(format!("read {}", path.display()))
    };
    let status = read("status")?;
    for expected in [
        "Uid:\t1337\t1337\t1337\t1337",
        "Gid:\t1337\t1337\t1337\t1337",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "VmSwap:\t       0 kB",
    ] {
        assert!(status.lines().any(|line| line == expected), "no {expected:?} for {}: {status}", of.1);
    }
    let limit = mesh.node.exec(&["bash", "-c", LIMIT, "limit", &pid]).await?;
    assert_eq!(limit.trim(), (16 << 20).to_string(), "the limit of memory");
    let mounts = read("mounts")?;
    let root = mounts.lines().find_map(|line| line.split_once(" / ")?.1.split(' ').nth(1));
    assert!(root.is_some_and(|options| options.split(',').any(|one| one == "ro")), "{mounts}");

    let memory = object(&mesh.shim(of, &["status", "--json"]).await?)?["memory"].take();
    assert_eq!(memory["level"], "secret", "{memory}");
    assert_eq!(memory["missing"], json!([]), "{memory}");
    let [mapped, limit] = ["mapped_bytes", "limit_bytes"].map(|name| memory[name].as_u64());
    assert!(mapped.zip(limit).is_some_and(|(mapped, limit)| mapped <= limit), "{memory}");
    Ok(())
}

/// The limit of memory of process `$1`.
const LIMIT: &str = r#"
path=$(awk -F: '$2 ~ /(^|,)memory(,|$)/ { print "/sys/fs/cgroup/memory" $3 "/memory.limit_in_bytes" }' "/proc/$1/cgroup")
cat "${path:-/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/memory.max}"
"#;

/// Searches all that a container of the pod sees and that does not come from its image.
async fn nothing_private_is_mounted(mesh: &Mesh, of: Of) -> testkit::Result {
    let pod = mesh.pod(of).await?;
    for container in containers(&pod) {
        let process = format!("/proc/{}", mesh.process(of, container).await?);
        let mounts = fs::read_to_string(mesh.node.path(&format!("{process}/mounts"))).or_fail("read the mounts")?;
        let (mut searched, mut roots) = (0, 0);
        for line in mounts.lines() {
            let [_, place, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let path = match place {
                // Of the image itself, what was written to it since.
                "/" => {
                    let written = options.split(',').find_map(|option| option.strip_prefix("upperdir="));
                    written.map(str::to_owned).ok_or_else(|| Failure::new(format!("the root is no overlay: {line}")))?
                }
                _ => format!("{process}/root{place}"),
            };
            if KERNELS.contains(&kind) || ["/proc/", "/sys/"].iter().any(|prefix| place.starts_with(prefix)) {
                continue;
            }
            searched += 1;
            for finding in search(&mesh.node.path(&path))? {
                roots += 1;
                // The one thing that is given: whom to trust.
                assert!(place == ROOT && finding.what == "certificate (PEM)", "{container} of {}: {finding:?}", of.1);
            }
        }
        println!("{container} of {}: {searched} mounts searched, {roots} root certificates", of.1);
        assert_eq!(roots > 0, container == SHIM, "the root certificate shows that the search finds things");
    }
    Ok(())
}

/// Keys and certificates in a directory, or in one file.
fn search(path: &Path) -> Result<Vec<Finding>, Failure> {
    let what = || format!("search {}", path.display());
    let kind = fs::metadata(path).or_fail(what())?.file_type();
    if kind.is_dir() {
        return Ok(scan(path).or_fail(what())?.findings);
    }
    let content = if kind.is_file() { fs::read(path).or_fail(what())? } else { Vec::new() };
    Ok(inspect(&content).map(|what| Finding { path: path.to_owned(), what }).into_iter().collect())
}

/// Where this test is, nobody has a certificate: plaintext is refused, the application's own port is closed, and the port
/// for probes has the paths that are named for it and nothing else.
async fn only_envoy_is_reached(mesh: &Mesh) -> testkit::Result {
    let pod = address(&mesh.pod(HTTPBIN).await?)?;
    for port in [INBOUND, APPLICATION] {
        assert!(plaintext((pod, port).into(), "/ip").await.is_err(), "port {port}");
    }
    for (path, status) in [("/app-health/ip", 200), ("/app-health/headers", 404), ("/ip", 404)] {
        assert_eq!(plaintext((pod, HEALTH).into(), path).await?.status, status, "{path}");
    }
    Ok(())
}

async fn plaintext(server: SocketAddr, path: &str) -> Result<http::Answer, Failure> {
    let stream = TcpStream::connect(server).await.or_fail(format!("connect to {server}"))?;
    http::get(stream, "httpbin", path).await
}

/// As with Istio's CNI plugin: nobody is told of the sidecar, iptables leads there what goes out and what comes in.
pub(crate) async fn iptables_may_lead_through_envoy(mesh: &Mesh) -> testkit::Result {
    let pod = address(&mesh.pod(HTTPBIN).await?)?;
    let ((client, root), application) = (mesh.client(), SocketAddr::from((pod, APPLICATION)));
    let call = ["exec", "-n", SLEEP.0, "deployment/sleep", "-c", "sleep", "--"];
    let call = [&call[..], &["curl", "-s", "--noproxy", "*", "http://httpbin.bar:8000/headers"]].concat();
    assert!(mesh.cluster.kubectl(&call).await.is_err(), "plaintext is answered");
    assert!(traffic::call(application, &client, &root).await.is_err(), "the application listens for everybody");
    for of in [SLEEP, HTTPBIN] {
        in_network(mesh, of, REDIRECT).await?;
    }
    let told = mesh.cluster.kubectl(&call).await?;
    for expected in ["URI=spiffe://cluster.local/ns/foo/sa/sleep", "By=spiffe://cluster.local/ns/bar/sa/httpbin"] {
        assert!(told.contains(expected), "no {expected} in {told}");
    }
    // Every port is Envoy's, also the application's own.
    traffic::call(application, &client, &root).await?;
    assert!(plaintext(application, "/ip").await.is_err());
    for of in [SLEEP, HTTPBIN] {
        in_network(mesh, of, "iptables --wait -t nat -F").await?;
    }
    Ok(())
}

/// Runs a script in a pod's network.
async fn in_network(mesh: &Mesh, of: Of, script: &str) -> testkit::Result {
    let pid = mesh.process(of, SHIM).await?;
    mesh.node.exec(&["nsenter", "--target", &pid, "--net", "--", "bash", "-ec", script]).await.map(drop)
}

/// The sidecars are user 1337; 15021 and 15022 are for kubelet and Prometheus.
const REDIRECT: &str = "iptables-restore --wait --noflush <<'RULES'
*nat
-A OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN
-A OUTPUT -p tcp -d 127.0.0.1/32 -j RETURN
-A OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp --dport 15021 -j RETURN
-A PREROUTING -p tcp --dport 15022 -j RETURN
-A PREROUTING -p tcp -j REDIRECT --to-ports 15006
COMMIT
RULES";

/// Under the profile that is shipped, and its probes' commands with it. The pod's namespace has a Service of which kubelet
/// tells it in variables that look like the shim's own.
pub(crate) async fn the_shims_own_profile_is_enough(mesh: &Mesh) -> testkit::Result {
    const PROFILE: &str = "sds-shim.json";
    mesh.node.take_seccomp_profile(PROFILE)?;
    let service = ["create", "service", "clusterip", "sds-shim", "--tcp=80", "-n", HTTPBIN.0];
    mesh.cluster.kubectl(&service).await?;
    let profile = json!({ "type": "Localhost", "localhostProfile": PROFILE });
    mesh.upgrade(&json!({ "securityContext": { "seccompProfile": profile } })).await?;
    mesh.remove(HTTPBIN).await?;
    mesh.deploy(HTTPBIN, PROFILE).await?;
    mesh.rolled_out(HTTPBIN).await?;
    mesh.shim(HTTPBIN, &["renew"]).await?;
    traffic::until(mesh, true, testkit::PATIENCE).await?;
    let environment = mesh.node.path(&format!("/proc/{}/environ", mesh.process(HTTPBIN, ENVOY).await?));
    let environment = fs::read_to_string(environment).or_fail("read Envoy's environment")?;
    assert!(environment.contains("SDS_SHIM_SERVICE_HOST=10."), "{environment}");

    ends_in_order(mesh, HTTPBIN).await?;
    mesh.cluster.kubectl(&["delete", "service", "sds-shim", "-n", HTTPBIN.0]).await?;
    mesh.upgrade(&json!({})).await?;
    mesh.deploy(HTTPBIN, SHIM).await?;
    mesh.rolled_out(HTTPBIN).await
}

/// The application goes first, then Envoy, then the shim, and none of them is killed.
async fn ends_in_order(mesh: &Mesh, of: Of) -> testkit::Result {
    let pod = mesh.pod(of).await?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    // Keeps the pod, with what kubelet last said of it.
    let finalizers = async |finalizers: Value| {
        let patch = json!({ "metadata": { "finalizers": finalizers } }).to_string();
        mesh.cluster.kubectl(&["patch", "pod", name, "-n", of.0, "--type=merge", "-p", &patch]).await
    };
    finalizers(json!(["sds-shim.dev/seen"])).await?;
    mesh.cluster.kubectl(&["delete", "deployment", of.1, "-n", of.0]).await?;
    let order = [of.1, ENVOY, SHIM];
    mesh.until(of, "ended", |pod| order.iter().all(|name| !status_of(pod, name)["state"]["terminated"].is_null()))
        .await?;
    let ended = mesh.pod(of).await?;
    finalizers(Value::Null).await?;
    for container in order {
        assert_eq!(terminated(&ended, container)["exitCode"], 0, "{container}: {}", terminated(&ended, container));
    }
    let events = order.into_iter().flat_map(|name| {
        let id = container_id(&status_of(&pod, name));
        [" with timeout", " returns successfully"].map(|end| format!("StopContainer for \\\"{id}\\\"{end}"))
    });
    logged(mesh, &events.collect::<Vec<_>>())
}
