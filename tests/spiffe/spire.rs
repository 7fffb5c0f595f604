//! SPIRE's own server and agent, real Envoy: the sidecar has its identity from the shim, the application that calls it
//! has its own from the agent.

use std::{fs, path::Path, time::Duration};

use openssl::x509::X509;
use testkit::{
    Failure, OrFail, PATIENCE, Result,
    development_ca::Issued,
    envoy::{Bootstrap, Envoy, SdsTransport},
    fixture::{Logged, Site, write},
    http,
    httpbin::Httpbin,
    port,
    process::Process,
    tls,
    workload_api::{Svid, Updates, WorkloadApi, at},
    workspace,
};
use tokio::{net::TcpStream, time::timeout};

use crate::scene::shim;

const ID: &str = "spiffe://example.org/ns/foo/sa/sleep";
const AGENT: &str = "spiffe://example.org/agent";
/// Seconds that a certificate lives; the agent renews at half of that.
const LIFE: u32 = 40;

/// SPIRE in a directory of its own.
struct Spire<'a> {
    place: &'a Path,
    port: u16,
}

impl Spire<'_> {
    fn start(&self, program: &str, configuration: &str, arguments: &[&str]) -> Result<Process> {
        let path = workspace().join("target/spire").join(program);
        assert!(path.exists(), "run `make spire`");
        let file = self.place.join(format!("{program}.conf"));
        write(&file, configuration)?;
        let file = file.display().to_string();
        let arguments: Vec<_> = ["run", "-config", &file].iter().chain(arguments).map(ToString::to_string).collect();
        Process::start(program, &path, &arguments, &[], self.place)
    }

    async fn server(&self) -> Result<Process> {
        let (place, port) = (self.place.display(), self.port);
        let configuration = format!(
            r#"server {{
                 bind_address = "127.0.0.1"
                 bind_port = "{port}"
                 socket_path = "{place}/server.sock"
                 trust_domain = "example.org"
                 data_dir = "{place}/server"
               }}
               plugins {{
                 DataStore "sql" {{ plugin_data {{
                   database_type = "sqlite3"
                   connection_string = "{place}/server.sqlite3"
                 }} }}
                 NodeAttestor "join_token" {{ plugin_data {{}} }}
                 KeyManager "memory" {{ plugin_data {{}} }}
               }}"#
        );
        let server = self.start("spire-server", &configuration, &[])?;
        server.wait_for_log("network=unix").await?;
        server.until("the server's socket", || self.place.join("server.sock").exists().then_some(())).await?;
        Ok(server)
    }

    /// Attests itself with this token, or with the key that it has kept.
    async fn agent(&self, token: Option<&str>) -> Result<Process> {
        let (place, port) = (self.place.display(), self.port);
        let configuration = format!(
            r#"agent {{
                 data_dir = "{place}/agent"
                 server_address = "127.0.0.1"
                 server_port = "{port}"
                 socket_path = "{place}/agent.sock"
                 trust_bundle_path = "{place}/bundle.pem"
                 trust_domain = "example.org"
               }}
               plugins {{
                 NodeAttestor "join_token" {{ plugin_data {{}} }}
                 KeyManager "disk" {{ plugin_data {{ directory = "{place}/agent" }} }}
                 WorkloadAttestor "unix" {{ plugin_data {{}} }}
               }}"#
        );
        let token: Vec<_> = token.iter().flat_map(|token| ["-joinToken", *token]).collect();
        let agent = self.start("spire-agent", &configuration, &token)?;
        agent.wait_for_log("Starting Workload and SDS APIs").await?;
        Ok(agent)
    }

    /// What the server's command line prints.
    async fn ask(&self, arguments: &[&str]) -> Result<String> {
        let program = workspace().join("target/spire/spire-server");
        let (verb, rest) = arguments.split_at(2);
        let socket = self.place.join("server.sock").display().to_string();
        let arguments: Vec<_> =
            verb.iter().chain(&["-socketPath", &socket]).chain(rest).map(ToString::to_string).collect();
        let mut process = Process::start("spire-server's client", &program, &arguments, &[], self.place)?;
        let ended = timeout(PATIENCE, process.wait_exit()).await.or_fail("wait for spire-server's client")??;
        let told = process.log().lines().join("\n");
        if ended.success() { Ok(told) } else { Err(process.failure("it failed")) }
    }
}

/// The application, which asks the agent itself.
struct Application {
    updates: Updates<sds_shim_proto::spiffe::X509svidResponse>,
    svid: Svid,
}

impl Application {
    async fn next(&mut self) -> Result {
        self.svid =
            timeout(Duration::from_secs(LIFE.into()), self.updates.svid()).await.or_fail("wait for a renewal")??;
        Ok(())
    }

    /// Calls the sidecar with what it has now.
    async fn calls(&self, port: u16) -> Result {
        let pem = |all: &[X509]| -> Result<String> {
            let each: std::result::Result<Vec<_>, _> = all.iter().map(|one| one.to_pem()).collect();
            String::from_utf8(each.or_fail("write certificates")?.concat()).or_fail("write certificates")
        };
        let key = self.svid.key.private_key_to_pem_pkcs8().or_fail("write the key")?;
        let key_pem = String::from_utf8(key).or_fail("write the key")?;
        let issued = Issued { chain_pem: pem(&self.svid.chain)?, key_pem };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.or_fail("connect to Envoy")?;
        let stream = tls::connect(stream, &pem(&self.svid.anchors)?, Some(&issued)).await?;
        let answer = http::get(stream, "localhost", "/ip").await?;
        if answer.status == 200 { Ok(()) } else { Err(Failure::new(answer.text())) }
    }
}

#[tokio::test]
#[ignore = "`make spire` builds SPIRE for it"]
async fn spires_agent_gives_envoy_its_identity_and_renews_it() -> testkit::Result {
    let site = Site::new().await?;
    let place = site.workload.path().join("spire");
    fs::create_dir_all(place.join("agent")).or_fail("make a directory")?;
    let spire = Spire { place: &place, port: port::unshared().or_fail("find a port")? };
    let _server = spire.server().await?;
    write(&place.join("bundle.pem"), &spire.ask(&["bundle", "show"]).await?)?;
    let token = spire.ask(&["token", "generate", "-spiffeID", AGENT]).await?;
    let token = token.strip_prefix("Token: ").unwrap_or_default().trim();
    let mut agent = spire.agent(Some(token)).await?;

    // There is no entry yet.
    let socket = place.join("agent.sock");
    let mut shim = Logged(shim(&site).env("SPIFFE_ENDPOINT_SOCKET", at(&socket)).start()?);
    shim.connect().await?;
    shim.wait_for_log("the Workload API answered PERMISSION_DENIED: no identity issued; Envoy waits").await?;
    let (uid, life) = (format!("unix:uid:{}", nix::unistd::geteuid()), LIFE.to_string());
    let entry = ["entry", "create", "-parentID", AGENT, "-spiffeID", ID, "-selector", &uid, "-x509SVIDTTL", &life];
    spire.ask(&entry).await?;
    shim.wait_for_log("received a certificate from the Workload API").await?;
    let (svid, updates) = WorkloadApi::wait_for(&socket).await?.svid().await?;
    let mut application = Application { updates, svid };

    let (httpbin, port) = (Httpbin::start().await?, port::unshared().or_fail("find a port")?);
    let bootstrap = Bootstrap::new("sleep", SdsTransport::EnvoyGrpc).port(port);
    let bootstrap = bootstrap.inbound(httpbin.address(), &[ID.to_owned()]);
    let mut envoy = Envoy::start("the sidecar's Envoy", site.workload.path(), &bootstrap.build())?;
    envoy.wait_ready().await?;
    application.calls(port).await?;
    for _ in 0..3 {
        application.next().await?;
        application.calls(port).await?;
    }
    let held = shim.log().count("received a certificate from the Workload API");
    assert!(held >= 3, "{held}");

    // The agent is away, and comes back.
    let mark = shim.log().mark();
    agent.terminate().await?;
    let line = shim.wait_for_log_after(mark, "renewal failed: ").await?;
    assert!(line.contains("; still serving the current certificate until "), "{line}");
    application.calls(port).await?;
    let _agent = spire.agent(None).await?;
    let mark = shim.log().mark();
    (application.svid, application.updates) = WorkloadApi::wait_for(&socket).await?.svid().await?;
    application.calls(port).await?;
    application.next().await?;
    application.calls(port).await?;
    let more = || (shim.log().count("received a certificate from the Workload API") > held).then_some(());
    shim.until("a certificate of the agent that is back", more).await?;
    assert!(shim.log().lines()[mark.min(shim.log().lines().len())..].iter().all(|line| !line.contains("rejected")));
    Ok(())
}
