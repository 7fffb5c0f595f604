//! What the rules are held against: any program that serves SDS to a sidecar, seen only from outside.

use std::time::Duration;

use sds_shim_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use serde_json::Value;
use testkit::{
    Failure, OrFail,
    development_ca::CaOptions,
    fixture::Site,
    pilot_agent::PilotAgent,
    process::Process,
    sds::{self, DeltaStream, SdsClient, SdsStream},
    shim::Shim,
};

/// How long nothing must come.
pub(crate) const QUIET: Duration = Duration::from_millis(500);
/// Life of the certificates of a subject that rotates, and the share of it that is left when they are renewed: every
/// two seconds.
pub(crate) const LIFE: Duration = Duration::from_secs(20);
const LEFT: &str = "0.9";

/// Who is held to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Implementation {
    Ours,
    PilotAgent,
}

/// A pod, and how the program in it is to be started.
pub(crate) struct Setup {
    pub(crate) site: Site,
    of: Implementation,
    env: Vec<(&'static str, String)>,
    proxy_config: Vec<(&'static str, Value)>,
    socket: Option<&'static str>,
}

impl Setup {
    pub(crate) async fn new(of: Implementation) -> Result<Self, Failure> {
        Self::with_options(of, CaOptions::default()).await
    }

    pub(crate) async fn with_options(of: Implementation, options: CaOptions) -> Result<Self, Failure> {
        Ok(Self::at(Site::with(options).await?, of))
    }

    pub(crate) async fn without_token(of: Implementation) -> Result<Self, Failure> {
        Ok(Self::at(Site::without_token(CaOptions::default()).await?, of))
    }

    fn at(site: Site, of: Implementation) -> Self {
        Self { site, of, env: Vec::new(), proxy_config: Vec::new(), socket: None }
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn proxy_config(mut self, field: &'static str, value: Value) -> Self {
        self.proxy_config.push((field, value));
        self
    }

    pub(crate) fn socket(mut self, path: &'static str) -> Self {
        self.socket = Some(path);
        self
    }

    /// Has it renew its certificate every two seconds.
    pub(crate) fn rotating(self) -> Self {
        self.site.ca.set_ttl(Some(LIFE));
        self.env("SECRET_GRACE_PERIOD_RATIO", LEFT).env("SECRET_GRACE_PERIOD_RATIO_JITTER", "0.01")
    }

    pub(crate) async fn start(self) -> Result<Subject, Failure> {
        let (mut server, site) = (self.launch()?, self.site);
        let client = server.connect().await?;
        Ok(Subject { client, server, site })
    }

    /// Starts it without waiting for anything.
    pub(crate) fn launch(&self) -> Result<Server, Failure> {
        let address = self.site.ca.address();
        Ok(match self.of {
            Implementation::Ours => {
                let mut shim = Shim::for_workload(&self.site.workload, address);
                for (name, value) in &self.env {
                    shim = shim.env(*name, value.clone());
                }
                if !self.proxy_config.is_empty() {
                    let config: Value = self.proxy_config.iter().cloned().map(|(f, v)| (f.to_owned(), v)).collect();
                    shim = shim.env("PROXY_CONFIG", config.to_string());
                }
                let shim = if let Some(path) = self.socket { shim.socket(path) } else { shim };
                Server::Shim(Box::new(shim.start()?))
            }
            Implementation::PilotAgent => {
                let mut agent = PilotAgent::for_workload(&self.site.workload, address)?;
                for (name, value) in &self.env {
                    agent = agent.env(name, value.clone());
                }
                for (field, value) in &self.proxy_config {
                    agent = agent.proxy_config(field, value.clone());
                }
                let agent = if let Some(path) = self.socket { agent.socket(path) } else { agent };
                Server::PilotAgent(Box::new(agent.start()?))
            }
        })
    }
}

/// The running program.
pub(crate) enum Server {
    Shim(Box<Shim>),
    PilotAgent(Box<PilotAgent>),
}

impl Server {
    pub(crate) async fn connect(&mut self) -> Result<SdsClient, Failure> {
        match self {
            Self::Shim(shim) => shim.connect().await,
            Self::PilotAgent(agent) => agent.connect().await,
        }
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        match self {
            Self::Shim(shim) => shim,
            Self::PilotAgent(agent) => agent,
        }
    }
}

/// A pod in which the program serves, and a connection to it.
pub(crate) struct Subject {
    // Fields drop in this order: the process ends before its directory goes.
    pub(crate) client: SdsClient,
    pub(crate) server: Server,
    pub(crate) site: Site,
}

impl Subject {
    /// All is well from the start.
    pub(crate) async fn new(of: Implementation) -> Result<Self, Failure> {
        Setup::new(of).await?.start().await
    }

    /// A stream that has asked for `names` and got its first answer, not yet acknowledged.
    pub(crate) async fn ask(&self, names: &[&str]) -> Result<(SdsStream, DiscoveryResponse), Failure> {
        let mut stream = self.client.stream();
        stream.send(sds::request(names));
        let answer = stream.recv().await?;
        Ok((stream, answer))
    }

    /// The same with `DeltaSecrets`.
    pub(crate) async fn ask_delta(&self, names: &[&str]) -> Result<(DeltaStream, DeltaDiscoveryResponse), Failure> {
        let mut stream = self.client.delta();
        stream.send(sds::delta_request(names, &[]));
        let answer = stream.recv().await?;
        Ok((stream, answer))
    }

    /// Waits until another stream has seen a rotation.
    pub(crate) async fn rotation(&self) -> Result<DiscoveryResponse, Failure> {
        let (mut witness, _) = self.ask(&["default"]).await?;
        witness.recv().await
    }

    /// A new connection, as Envoy makes it after an end of the old one.
    pub(crate) async fn reconnect(&self) -> Result<SdsClient, Failure> {
        SdsClient::connect(&self.site.workload.socket()).await.or_fail("connect anew")
    }
}
