//! The `sds-shim` process.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use tokio::time::{Instant, sleep};

use crate::{
    Failure, PATIENCE, POLL, Workload,
    confined::Confinement,
    process::{Process, binary},
    sds::SdsClient,
    workload::SOCKET,
};

/// A running shim; killed when it is dropped. Everything of [`Process`] can be asked of it.
pub struct Shim {
    process: Process,
    socket: PathBuf,
}

impl Shim {
    /// A shim in `directory`, with nothing in its environment yet.
    pub fn builder(directory: &Path) -> ShimBuilder {
        ShimBuilder {
            name: "sds-shim".to_owned(),
            directory: directory.to_owned(),
            arguments: Vec::new(),
            env: BTreeMap::new(),
            socket: directory.join(SOCKET),
            confinement: None,
        }
    }

    /// A shim with the environment that a workload's pod gives it; `ca` is the development CA's address.
    pub fn for_workload(workload: &Workload, ca: SocketAddr) -> ShimBuilder {
        let mut builder = Self::builder(workload.path())
            .env("CA_ADDR", format!("localhost:{}", ca.port()))
            .env("TRUST_DOMAIN", "cluster.local")
            .env("POD_NAMESPACE", workload.namespace())
            .env("SERVICE_ACCOUNT", workload.service_account())
            .env("POD_NAME", format!("{}-0", workload.service_account()))
            .env("ISTIO_META_CLUSTER_ID", "Kubernetes");
        builder.name = format!("sds-shim of {}", workload.name());
        builder
    }

    /// The socket that it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the socket accepts connections and opens one; fails when the process ends instead.
    pub async fn connect(&mut self) -> Result<SdsClient, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match SdsClient::connect(&self.socket).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Some(status) = self.process.exited() {
                self.process.wait_exit().await?;
                let name = self.process.name();
                return Err(self.process.failure(format!("{name} ended ({status}) before its socket could be used")));
            }
            if Instant::now() > deadline {
                let name = self.process.name();
                return Err(self.process.failure(format!("{name} has no usable socket after {PATIENCE:?}: {error}")));
            }
            sleep(POLL).await;
        }
    }
}

impl Deref for Shim {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Shim {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// How a shim is to be started.
#[derive(Clone)]
pub struct ShimBuilder {
    name: String,
    directory: PathBuf,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    socket: PathBuf,
    confinement: Option<Confinement>,
}

impl ShimBuilder {
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Leaves a variable out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds a command-line argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Where tests look for the socket, relative to the directory, when it is not at its usual place.
    #[must_use]
    pub fn socket(mut self, path: &str) -> Self {
        self.socket = self.directory.join(path);
        self
    }

    /// Confines it, as an ordinary user without capabilities; our own user may still connect.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = Some(confinement);
        self.env("SDS_SHIM_ALLOW_UIDS", nix::unistd::geteuid().to_string())
    }

    /// Starts the binary that `SHIM_BINARY` names, else `target/dist/sds-shim`.
    pub fn start(self) -> Result<Shim, Failure> {
        let program = binary("SHIM_BINARY", "target/dist/sds-shim", "run `make build`")?;
        let env: Vec<_> = self.env.into_iter().collect();
        let (program, mut arguments) = match &self.confinement {
            Some(confinement) => confinement.command(&program, &self.directory)?,
            None => (program, Vec::new()),
        };
        arguments.extend(self.arguments);
        let process = Process::start(&self.name, &program, &arguments, &env, &self.directory)?;
        Ok(Shim { process, socket: self.socket })
    }
}
