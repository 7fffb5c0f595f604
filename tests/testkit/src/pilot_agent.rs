//! Istio's own agent, `pilot-agent`, run as in a sidecar.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    Failure, OrFail, Workload,
    fixture::write_program,
    port,
    process::{Process, binary},
    sds::SdsClient,
};

/// Where it finds the template of Envoy's bootstrap.
const TEMPLATE: &str = "var/lib/istio/envoy/envoy_bootstrap_tmpl.json";
/// Where it has its own socket when it steps aside.
pub const FILES_SOCKET: &str = "var/run/secrets/credential-uds/files-socket";
/// What stands in for Envoy where a test needs none: it ends with its parent.
const STUB: &str = "#!/bin/sh
[ \"$1\" = --version ] && echo 'envoy  version: 0/1.40.0/Clean/RELEASE/BoringSSL' && exit
exec tail --pid=$PPID -f /dev/null
";

/// A running `pilot-agent`; killed when it is dropped. Everything of [`Process`] can be asked of it.
pub struct PilotAgent {
    process: Process,
    socket: PathBuf,
}

/// How it is to be started.
pub struct PilotAgentBuilder {
    directory: PathBuf,
    env: BTreeMap<String, String>,
    proxy_config: Value,
    socket: PathBuf,
}

impl PilotAgent {
    /// An agent in the workload's directory, with the environment that Istio's injector sets; `ca` is the development
    /// CA's address.
    pub fn for_workload(workload: &Workload, ca: SocketAddr) -> Result<PilotAgentBuilder, Failure> {
        let directory = workload.path();
        let template = program()?.with_file_name("envoy_bootstrap_tmpl.json");
        for file in [TEMPLATE, FILES_SOCKET, "etc/istio/proxy/envoy"] {
            let parent = directory.join(file);
            fs::create_dir_all(parent.parent().unwrap_or(directory)).or_fail("lay out the agent's directories")?;
        }
        fs::copy(template, directory.join(TEMPLATE)).or_fail("copy the bootstrap template")?;
        let stub = directory.join("etc/istio/proxy/envoy");
        write_program(&stub, STUB)?;
        let status_port = port::unshared().or_fail("find a port")?;
        let env = [
            ("CA_ADDR", format!("localhost:{}", ca.port())),
            ("TRUST_DOMAIN", "cluster.local".to_owned()),
            ("POD_NAME", format!("{}-0", workload.service_account())),
            ("POD_NAMESPACE", workload.namespace().to_owned()),
            ("SERVICE_ACCOUNT", workload.service_account().to_owned()),
            ("INSTANCE_IP", "127.0.0.1".to_owned()),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
            // There is no cloud whose metadata server could be asked.
            ("CLOUD_PLATFORM", "none".to_owned()),
            // For what it starts.
            ("PATH", "/usr/bin:/bin".to_owned()),
        ];
        Ok(PilotAgentBuilder {
            directory: directory.to_owned(),
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            proxy_config: json!({
                "binaryPath": "./etc/istio/proxy/envoy",
                "configPath": "./etc/istio/proxy",
                "statusPort": status_port,
                // Nobody has connections that would have to drain.
                "terminationDrainDuration": "0.1s",
                // Nobody is there: it is dialled when Envoy asks for more than secrets.
                "discoveryAddress": "127.0.0.1:1",
            }),
            socket: workload.socket(),
        })
    }

    /// Waits until the socket accepts connections and opens one; fails when the process ends instead.
    pub async fn connect(&mut self) -> Result<SdsClient, Failure> {
        SdsClient::wait_for(&mut self.process, &self.socket).await
    }
}

const REMEDY: &str = "run tests/testkit/install-pilot-agent.sh";

/// The agent's command line without the program: one sidecar.
pub const ARGUMENTS: [&str; 4] = ["proxy", "sidecar", "--domain", "foo.svc.cluster.local"];

/// The program.
pub fn program() -> Result<PathBuf, Failure> {
    binary("PILOT_AGENT", "target/pilot-agent/pilot-agent", REMEDY)
}

impl PilotAgentBuilder {
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets a field of `PROXY_CONFIG`.
    #[must_use]
    pub fn proxy_config(mut self, field: &str, value: Value) -> Self {
        self.proxy_config[field] = value;
        self
    }

    /// Has it run this Envoy with this configuration, instead of a stub that does nothing.
    #[must_use]
    pub fn envoy(self, envoy: &Path, config: &Path) -> Self {
        self.proxy_config("binaryPath", json!(envoy)).proxy_config("customConfigFile", json!(config))
    }

    /// Where tests look for the socket, relative to the directory, when it is not at its usual place.
    #[must_use]
    pub fn socket(mut self, path: &str) -> Self {
        self.socket = self.directory.join(path);
        self
    }

    /// All variables, for who starts it by other means.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        env.insert("PROXY_CONFIG".to_owned(), self.proxy_config.to_string());
        env
    }

    /// Starts the program that `PILOT_AGENT` names, else `target/pilot-agent/pilot-agent`.
    pub fn start(self) -> Result<PilotAgent, Failure> {
        let env: Vec<_> = self.variables().into_iter().collect();
        let process = Process::start("pilot-agent", &program()?, &ARGUMENTS.map(str::to_owned), &env, &self.directory)?;
        Ok(PilotAgent { process, socket: self.socket })
    }
}

impl Deref for PilotAgent {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for PilotAgent {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
