//! Envoy processes.

mod admin;
pub mod ads;
mod bootstrap;
pub mod judge;
pub mod wire;
mod xds;

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    Failure, OrFail, PATIENCE, POLL,
    process::{Process, binary},
};

pub use admin::{Admin, Certificate, SecretStates};
pub use bootstrap::{Bootstrap, SdsTransport, Upstream, XDS_CLUSTER, sds_config, upstream_tls_params};

/// The admin socket, relative to Envoy's working directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The configuration, relative to Envoy's working directory.
const CONFIG: &str = "envoy.json";

/// The binary that `ENVOY_BINARY` names, else `target/envoy/envoy`.
pub fn program() -> Result<PathBuf, Failure> {
    binary("ENVOY_BINARY", "target/envoy/envoy", "run tests/testkit/install-envoy.sh")
}

/// A running Envoy; killed when it is dropped. Everything of [`Process`] can be asked of it.
pub struct Envoy {
    process: Process,
    admin: Admin,
}

impl Envoy {
    /// Starts the [`program`] in `directory` with this configuration.
    ///
    /// `bootstrap` is made by [`Bootstrap::build`]. Relative paths in it are resolved against `directory`.
    pub fn start(name: &str, directory: &Path, bootstrap: &Value) -> Result<Self, Failure> {
        let program = program()?;
        let config = directory.join(CONFIG);
        std::fs::write(&config, format!("{bootstrap:#}")).or_fail(format!("write {}", config.display()))?;
        // Without hot restart an Envoy needs no base id and leaves no shared memory behind.
        let mut arguments = vec!["-c", CONFIG, "--concurrency", "1", "--disable-hot-restart", "--log-level", "info"];
        // Who drains its connections sees it with the next answer, not with one of those of the next ten minutes.
        arguments.extend(["--drain-strategy", "immediate"]);
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let process = Process::start(name, &program, &arguments, &[], directory)?;
        Ok(Self { process, admin: Admin::new(directory.join(ADMIN_SOCKET)) })
    }

    /// The admin interface.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Waits until Envoy is live, that is until every secret of its static listeners and clusters has arrived.
    pub async fn wait_ready(&mut self) -> crate::Result {
        let admin = self.admin.clone();
        let ready = || async {
            if admin.is_ready().await {
                return Ok(true);
            }
            let waiting = admin.secrets().await?.warming;
            Err(Failure::new(format!("it waits for the secrets {waiting:?}")))
        };
        self.wait_until("ready", ready).await
    }

    /// Looks at a condition until it holds, Envoy ends, or the kit's patience does; an error counts as not yet.
    ///
    /// `what` completes the sentence "Envoy did not get …".
    pub async fn wait_until<F>(&mut self, what: &str, condition: impl Fn() -> F) -> crate::Result
    where
        F: Future<Output = Result<bool, Failure>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let outcome = condition().await;
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if let Some(status) = self.process.exited() {
                self.process.wait_exit().await?;
                return Err(self.process.failure(format!("{} ended ({status})", self.process.name())));
            }
            if Instant::now() > deadline {
                let name = self.process.name();
                let failure = outcome.err().unwrap_or_else(|| Failure::new("it never came true"));
                return Err(self.process.explain(failure.context(format!("{name} did not get {what}"))));
            }
            sleep(POLL).await;
        }
    }
}

impl Deref for Envoy {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Envoy {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
