//! A real Envoy with the configuration that the Helm chart gives it, and a shim beside it: `make test-kubernetes`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::ProjectedVolume,
    envoy::Admin,
    fixture::{Logged, Site},
    http,
    port::Reservation,
    process::Process,
    workspace,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// The ports of a pod, which this machine shares with others: inbound, outbound, health, and the application's.
struct Ports([Reservation; 4]);

impl Ports {
    fn new() -> Result<Self, Failure> {
        let reserve = || Reservation::new().or_fail("reserve a port");
        Ok(Self([reserve()?, reserve()?, reserve()?, reserve()?]))
    }

    fn values(&self, proxy: &Value, mode: &str) -> Value {
        let [inbound, outbound, health, _] = self.0.each_ref().map(Reservation::port);
        let mut proxy = proxy.clone();
        proxy["inboundPort"] = inbound.into();
        proxy["outboundPort"] = outbound.into();
        proxy["healthPort"] = health.into();
        json!({ "namespaces": ["foo"], "injection": "patch", "proxy": proxy, "mutualTLS": { "mode": mode } })
    }
}

/// What an injected Envoy is given.
struct Given {
    /// In its arguments.
    bootstrap: String,
    /// In its volume.
    files: BTreeMap<String, String>,
}

/// What these values give an Envoy with these ports, with the paths of a pod below `root`.
fn given(values: &Value, ports: &Ports, root: &Path) -> Given {
    let mut command = Command::new(workspace().join("target/kubernetes/helm"));
    command.args(["template", "sds-shim", "packaging/helm/sds-shim", "-s", "templates/configuration.yaml"]);
    command.args(["--kube-version", "1.37.2", "-f", "-"]).current_dir(workspace());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run `make kubernetes`");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(values.to_string().as_bytes()).expect("helm reads its values");
    drop(input);
    let output = child.wait_with_output().expect("helm ends");
    let manifest = String::from_utf8_lossy(&output.stdout).into_owned();
    let root = root.display();
    let moved = |text: &str| {
        let text = text.replace("/etc/sds-shim", &format!("{root}/etc/sds-shim"));
        text.replace("/var/run/", &format!("{root}/var/run/"))
    };
    let [inbound, outbound, _, application] = ports.0.each_ref().map(Reservation::port);
    let content = |name: &str, key: &str| {
        let (_, rest) = manifest.split_once(&format!("\n  {key}: |\n")).expect("it is in the ConfigMap");
        let lines: Vec<_> = rest.lines().map_while(|line| line.strip_prefix("    ")).collect();
        (name.to_owned(), moved(&lines.join("\n")))
    };
    let family = if values["proxy"]["bindAddress"] == "::" { "ipv6" } else { "ipv4" };
    let (_, arguments) = manifest.split_once("- --config-yaml\n").expect("it is an argument");
    let argument = arguments.lines().next().and_then(|line| line.trim().strip_prefix("- ")).unwrap_or_default();
    let bootstrap: String = serde_json::from_str(argument).expect("it is quoted");
    Given {
        bootstrap: moved(&bootstrap.replace("@APP_PORT@", &application.to_string())),
        files: [
            content("listeners.json", &format!("listeners-{family}-{inbound}-{outbound}.json")),
            content("clusters.json", "clusters.json"),
        ]
        .into(),
    }
}

/// An Envoy as the injected container starts it.
struct Proxy {
    process: Process,
    admin: Admin,
    volume: ProjectedVolume,
}

impl Proxy {
    fn start(root: &Path, given: &Given) -> Result<Self, Failure> {
        let volume = ProjectedVolume::create(&root.join("etc/sds-shim"), &borrowed(&given.files));
        let volume = volume.or_fail("write the ConfigMap's files")?;
        let socket = root.join("var/run/sds-shim-envoy/admin.sock");
        fs::create_dir_all(socket.parent().unwrap_or(root)).or_fail("make the directory of its socket")?;
        let arguments = ["--config-yaml", &given.bootstrap, "--service-node", "app.foo"];
        let more = ["--service-cluster", "sleep.foo", "--concurrency", "1", "--disable-hot-restart"];
        let arguments: Vec<_> = arguments.iter().chain(&more).map(ToString::to_string).collect();
        let usual = || workspace().join("target/envoy/envoy");
        let program = std::env::var_os("ENVOY_BINARY").map_or_else(usual, PathBuf::from);
        let process = Process::start("envoy", &program, &arguments, &[], root)?;
        Ok(Self { process, admin: Admin::at(&socket), volume })
    }

    /// Waits until its configuration has been taken so often, and never refused.
    async fn has_taken(&self, times: u64) -> testkit::Result {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut taken = u64::MAX;
            for kind in ["cluster_manager.cds", "listener_manager.lds"] {
                let stat = |name: &str| format!("{kind}.{name}");
                let refused = self.admin.stat(&stat("update_rejected")).await.unwrap_or(0);
                assert_eq!(refused, 0, "{kind}: {:?}", self.process.log().lines());
                taken = taken.min(self.admin.stat(&stat("update_success")).await.unwrap_or(0));
            }
            if taken >= times && self.admin.is_ready().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.process.failure(format!("the configuration was taken {taken} times, not {times}")));
            }
            sleep(POLL).await;
        }
    }
}

fn borrowed(files: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect()
}

fn service(name: &str, address: &str) -> Value {
    json!({ "service": name, "namespace": "foo", "serviceAccount": name, "port": 8000, "address": address })
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
async fn envoy_takes_what_the_values_make_of_its_configuration() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().start()?);
    let clients = json!(["spiffe://cluster.local/ns/foo/*", "spiffe://cluster.local/ns/bar/sa/sleep"]);
    let again = json!({ "service": "a", "namespace": "foo", "serviceAccount": "a", "port": 81 });
    for (proxy, mode) in [
        (json!({}), "STRICT"),
        (json!({}), "PERMISSIVE"),
        (json!({ "bindAddress": "::" }), "PERMISSIVE"),
        (json!({ "allowedClients": clients, "outbound": [service("a", "127.0.0.1"), again] }), "STRICT"),
    ] {
        if proxy["bindAddress"] == "::" && TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err() {
            println!("NOT TESTED: this machine has no IPv6, and an Envoy could not listen there");
            continue;
        }
        let ports = Ports::new()?;
        let mut values = ports.values(&proxy, mode);
        values["trustDomainAliases"] = json!(["other.org", "third.org"]);
        let given = given(&values, &ports, site.workload.path());
        let mut envoy = Proxy::start(site.workload.path(), &given)?;
        envoy.has_taken(1).await?;
        let listeners = envoy.admin.get("/listeners").await?;
        let names: Vec<_> = listeners.lines().filter_map(|line| line.split("::").next()).collect();
        assert_eq!(names, ["health", "inbound", "outbound"]);
        in_each_trust_domain(&given);
        offers_what_the_keys_need(&given)?;
        // Also where it listens on all addresses of IPv6.
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ports.0[2].port())).await.or_fail("connect to Envoy")?;
        assert_eq!(http::get(stream, "app", "/ready").await.or_fail("ask whether it is ready")?.status, 200);
        assert_eq!(plaintext(&ports).await?, (mode == "PERMISSIVE").then_some(503));
        envoy.process.terminate().await?;
    }
    shim.terminate().await.map(drop)
}

/// Whoever is expected, as a client or as a server, is expected in the trust domain and its aliases.
fn in_each_trust_domain(given: &Given) {
    for content in given.files.values() {
        let names = ["cluster.local", "other.org", "third.org"].map(|domain| {
            let begin = format!("\"spiffe://{domain}/");
            content.split(&begin).skip(1).filter_map(|rest| rest.split('"').next()).collect::<Vec<_>>()
        });
        assert!(names[0] == names[1] && names[1] == names[2], "{names:?}");
        assert_eq!(names[0].is_empty(), !content.contains("match_typed_subject_alt_names"));
    }
}

/// Without these key exchanges, a server's key of another kind is refused (`tests/files/key_kinds.rs`).
fn offers_what_the_keys_need(given: &Given) -> testkit::Result {
    let clusters = testkit::kubernetes::object(&given.files["clusters.json"])?;
    for cluster in clusters["resources"].as_array().expect("a list") {
        let context = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
        assert_eq!(context["tls_params"], testkit::envoy::upstream_tls_params(), "{cluster}");
    }
    Ok(())
}

/// Another service, other clients, and strictness: no pod is started again for them.
#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
async fn a_change_of_the_values_reaches_a_running_envoy() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().start()?);
    let (root, ports) = (site.workload.path(), Ports::new()?);
    let values = |client: &str, services: Value, mode: &str| {
        let client = format!("spiffe://cluster.local/ns/foo/sa/{client}");
        ports.values(&json!({ "allowedClients": [client], "outbound": services }), mode)
    };
    let first = given(&values("sleep", json!([service("a", "127.0.0.1")]), "PERMISSIVE"), &ports, root);
    let mut envoy = Proxy::start(root, &first)?;
    envoy.has_taken(1).await?;
    // Of the sidecar, whose application does not run.
    assert_eq!(plaintext(&ports).await?, Some(503));

    let services = json!([service("a", "127.0.0.1"), service("b", "127.0.0.1")]);
    let second = given(&values("other", services, "STRICT"), &ports, root);
    envoy.volume.replace(&borrowed(&second.files)).or_fail("swap the files as kubelet does")?;
    envoy.has_taken(2).await?;
    let dump = envoy.admin.get("/config_dump").await?;
    assert!(dump.contains("spiffe://cluster.local/ns/foo/sa/other"), "{dump}");
    assert!(envoy.admin.get("/clusters").await?.contains("b.foo:8000::"));
    let deadline = Instant::now() + PATIENCE;
    while let Some(status) = plaintext(&ports).await? {
        assert!(Instant::now() < deadline, "plaintext is still answered with {status}");
        sleep(POLL).await;
    }
    envoy.process.terminate().await?;
    shim.terminate().await.map(drop)
}

/// The status with which a request without TLS is answered at the inbound port, if it is.
async fn plaintext(ports: &Ports) -> Result<Option<u16>, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ports.0[0].port())).await.or_fail("connect to Envoy")?;
    Ok(http::get(stream, "app", "/").await.ok().map(|answer| answer.status))
}
