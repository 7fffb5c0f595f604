//! A Kubernetes control plane: etcd, the API server and the controllers that make service accounts, publish the API
//! server's root and clear away what was deleted. Without a [`Node`](crate::node::Node) there is no kubelet and no
//! scheduler: a pod is an object of the API, and what a kubelet would do with it is for the test to do.

mod configuration;
mod network;
mod objects;
mod tools;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{Failure, OrFail, PATIENCE, POLL, http, port, process::Process, scratch::Scratch, tls, workspace};
use configuration::Configuration;
pub use configuration::ISSUER;
pub(crate) use configuration::NODE_NAME;
pub use network::own_network;
pub use tools::{Told, object};

/// How long the control plane may take to start: it only bounds failures.
const START: Duration = Duration::from_secs(300);

/// A running control plane; it ends when it is dropped.
pub struct Cluster {
    // Fields drop in this order: each is gone before what it needs.
    scheduler: Option<Process>,
    controllers: Process,
    api_server: Process,
    etcd: Process,
    configuration: Configuration,
    started: Duration,
    scratch: Scratch,
}

impl Cluster {
    /// Starts all of it and returns once the API server says that it is ready.
    pub async fn start() -> Result<Self, Failure> {
        Self::start_for(None).await
    }

    /// The same with a scheduler, for a node with this address, by which also pods reach the API server.
    pub async fn start_with_node(address: Ipv4Addr) -> Result<Self, Failure> {
        Self::start_for(Some(address)).await
    }

    async fn start_for(node: Option<Ipv4Addr>) -> Result<Self, Failure> {
        let scratch = Scratch::new("kubernetes-cluster")?;
        let port = port::unshared().or_fail("find a port for the API server")?;
        let configuration = Configuration::write(scratch.path(), port, node)?;
        let begun = Instant::now();
        let start = |name, arguments| tethered(name, arguments, configuration.directory());
        let mut etcd = start("etcd", configuration.etcd())?;
        etcd.wait_for_log("ready to serve client requests").await?;
        let mut api_server = start("kube-apiserver", configuration.api_server())?;
        ready(&configuration, &mut api_server).await.map_err(|failure| etcd.explain(api_server.explain(failure)))?;
        let controllers = start("kube-controller-manager", configuration.controllers())?;
        let scheduler = node.map(|_| start("kube-scheduler", configuration.scheduler())).transpose()?;
        let started = begun.elapsed();
        let _running = etcd.exited();
        Ok(Self { scheduler, controllers, api_server, etcd, configuration, started, scratch })
    }

    /// How long it took from the start of etcd until the API server was ready.
    pub fn started(&self) -> Duration {
        self.started
    }

    /// `https://HOST:PORT` of the API server.
    pub fn url(&self) -> String {
        self.configuration.url()
    }

    /// Its loopback address.
    pub fn address(&self) -> SocketAddr {
        self.configuration.address()
    }

    /// File with the root that the API server's certificate chains to.
    pub fn root_file(&self) -> PathBuf {
        self.configuration.root_file()
    }

    /// How an administrator, and how kubelet reaches it.
    pub(crate) fn kubeconfigs(&self) -> [PathBuf; 2] {
        [self.configuration.admin(), self.configuration.kubelet()]
    }

    /// Its directory, for what belongs to it alone.
    pub fn path(&self) -> &Path {
        self.configuration.directory()
    }

    /// Where one of the programs is.
    pub fn program(&self, name: &str) -> Result<PathBuf, Failure> {
        program(name)
    }

    /// Its processes: etcd, the API server, the controllers.
    pub fn processes(&self) -> [&Process; 3] {
        [&self.etcd, &self.api_server, &self.controllers]
    }

    /// Adds the logs of its processes to a failure.
    pub fn explain(&self, failure: Failure) -> Failure {
        self.controllers.explain(self.api_server.explain(failure))
    }

    /// Ends its processes in order and removes its files.
    pub async fn stop(mut self) -> crate::Result {
        let rest = [&mut self.controllers, &mut self.api_server, &mut self.etcd];
        for process in self.scheduler.as_mut().into_iter().chain(rest) {
            process.terminate().await?;
        }
        self.scratch.remove()
    }
}

/// Starts one of the programs; it ends with us, also when we are killed.
fn tethered(name: &str, arguments: Vec<String>, directory: &Path) -> Result<Process, Failure> {
    let mut command = ["--pdeathsig", "KILL", "--"].map(str::to_owned).to_vec();
    command.push(program(name)?.display().to_string());
    command.extend(arguments);
    Process::start(name, Path::new("/usr/bin/setpriv"), &command, &[], directory)
}

/// One of the programs that `make kubernetes` builds; `KUBERNETES_DIR` names another directory than the usual one.
fn program(name: &str) -> Result<PathBuf, Failure> {
    let directory = match std::env::var_os("KUBERNETES_DIR") {
        Some(directory) => std::path::absolute(directory).or_fail("resolve KUBERNETES_DIR")?,
        None => workspace().join("target/kubernetes"),
    };
    let path = directory.join(name);
    match path.is_file() {
        true => Ok(path),
        false => Err(Failure::new(format!("{} is missing: run `make kubernetes`", path.display()))),
    }
}

/// Waits until `/readyz` is answered with 200.
async fn ready(configuration: &Configuration, api_server: &mut Process) -> crate::Result {
    let look = async || {
        let stream = TcpStream::connect(configuration.address()).await.or_fail("connect")?;
        let stream = tls::connect(stream, configuration.root_pem(), None).await?;
        http::get(stream, "localhost", "/readyz").await
    };
    let wait = async {
        loop {
            let last = match look().await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => answer.text(),
                Err(failure) => failure.what().to_owned(),
            };
            if let Some(status) = api_server.exited() {
                return Err(Failure::new(format!("the API server ended with {status}; it last said {last:?}")));
            }
            sleep(POLL).await;
        }
    };
    match timeout(START.max(PATIENCE), wait).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(format!("the API server was not ready within {START:?}"))),
    }
}
