//! Beside Istio's own agent: it finds our socket, steps aside and serves nothing but files, and Envoy gets its secrets
//! from us, started by hand before it or as its parent (`sds-shim exec`).

use std::collections::BTreeSet;

use testkit::{
    Failure, OrFail, POLL,
    envoy::{ADMIN_SOCKET, Admin, Bootstrap, SdsTransport},
    fixture::{Logged, Site, names},
    pilot_agent::{self, ARGUMENTS, FILES_SOCKET, PilotAgent},
    process::Process,
    sds::{self, SdsClient},
    workspace,
};
use tokio::time::{Instant, sleep};

/// Starts in a row, of each kind.
const STARTS: usize = 50;
/// What it says when it steps aside.
const ASIDE: &str = "Existing workload SDS socket found at";

/// Whether the agent has stepped aside for good, and the socket is still ours.
async fn stands_aside(site: &Site, process: &Process) -> testkit::Result {
    process.wait_for_log(ASIDE).await?;
    let client = SdsClient::connect(&site.workload.socket()).await.or_fail("connect after the agent's start")?;
    // Only we serve it, and only we call the CA.
    let answer = client.fetch(sds::request(&["default", "ROOTCA"])).await.or_fail("fetch")?;
    assert_eq!(names(&answer)?, ["ROOTCA", "default"]);
    assert_eq!(site.ca.calls().len(), 1, "somebody else has called the CA");
    Ok(())
}

/// What the agent serves on its own socket: files, and never the workload's certificate.
async fn serves_only_files(site: &Site) -> testkit::Result {
    let socket = site.workload.path().join(FILES_SOCKET);
    let deadline = Instant::now() + testkit::PATIENCE;
    let client = loop {
        match SdsClient::connect(&socket).await {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "the agent's own socket: {error}"),
        }
        sleep(POLL).await;
    };
    let name = format!("file-root:{}", site.workload.root_certificate().display());
    let mut stream = client.stream();
    stream.send(sds::request(&[&name]));
    assert_eq!(names(&stream.recv().await?)?, [name]);
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    assert!(stream.recv().await.is_err(), "it serves a workload certificate");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_starts_after_us_steps_aside() -> testkit::Result {
    for start in 1..=STARTS {
        let site = Site::new().await?;
        let mut shim = Logged(site.shim().start()?);
        shim.connect().await?;
        let agent = PilotAgent::for_workload(&site.workload, site.ca.address())?.start()?;
        let aside = stands_aside(&site, &agent).await;
        aside.map_err(|failure| agent.explain(failure).context(format!("start {start}")))?;
        if start == 1 {
            serves_only_files(&site).await?;
        }
    }
    Ok(())
}

/// The shim as the entrypoint of the agent's container, with the agent's variables beside its own.
fn entrypoint(site: &Site, agent: &pilot_agent::PilotAgentBuilder) -> Result<Logged, Failure> {
    let program = pilot_agent::program()?.display().to_string();
    let command: Vec<_> = [program.as_str()].into_iter().chain(ARGUMENTS).collect();
    let mut shim = site.shim().exec(&command);
    for (name, value) in agent.variables() {
        shim = shim.env(name, value);
    }
    Ok(Logged(shim.start()?))
}

#[tokio::test]
async fn an_agent_that_we_start_steps_aside() -> testkit::Result {
    for start in 1..=STARTS {
        let site = Site::new().await?;
        let agent = PilotAgent::for_workload(&site.workload, site.ca.address())?;
        let mut shim = entrypoint(&site, &agent)?;
        let aside = stands_aside(&site, &shim).await;
        aside.map_err(|failure| shim.explain(failure).context(format!("start {start}")))?;
        if start == 1 {
            serves_only_files(&site).await?;
            // Before that it does not handle signals yet.
            shim.wait_for_log("Envoy command").await?;
            assert_eq!(shim.terminate().await?.code(), Some(0));
        } else {
            shim.terminate().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_agents_envoy_gets_its_secrets_from_us() -> testkit::Result {
    let site = Site::new().await?;
    let directory = site.workload.path();
    let config = Bootstrap::new("sleep", SdsTransport::EnvoyGrpc)
        .inbound(site.ca.address(), &[site.workload.spiffe_id()])
        .build();
    let file = directory.join("envoy.json");
    std::fs::write(&file, config.to_string()).or_fail("write Envoy's configuration")?;
    let envoy = std::env::var_os("ENVOY_BINARY").map_or_else(|| workspace().join("target/envoy/envoy"), From::from);
    let agent = PilotAgent::for_workload(&site.workload, site.ca.address())?.envoy(&envoy, &file);
    let mut shim = entrypoint(&site, &agent)?;
    let admin = Admin::at(&directory.join(ADMIN_SOCKET));
    let deadline = Instant::now() + testkit::PATIENCE;
    while !admin.is_ready().await {
        assert!(Instant::now() < deadline && shim.exited().is_none(), "Envoy does not get ready");
        sleep(POLL).await;
    }
    let both = ["ROOTCA", "default"].map(str::to_owned);
    assert_eq!(admin.secrets().await?.active, BTreeSet::from(both));
    let certificates = admin.certificates().await?;
    let uris: Vec<_> = certificates.into_iter().flat_map(|certificate| certificate.uris).collect();
    assert_eq!(uris, [site.workload.spiffe_id()]);
    assert!(shim.log().contains(ASIDE));
    assert_eq!(site.ca.calls().len(), 1);
    shim.terminate().await?;
    Ok(())
}
