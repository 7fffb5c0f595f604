//! kubectl, helm and shell commands with them, as the cluster's administrator.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{Cluster, START, program};
use crate::{Failure, OrFail, workspace};

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Told {
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl Cluster {
    /// Runs kubectl and returns what it wrote; fails unless its exit code is 0.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.run("kubectl", arguments, "").await?.success()
    }

    /// The same, with `input` on its standard input: `-f -` reads it.
    pub async fn kubectl_on(&self, input: &Value, arguments: &[&str]) -> Result<String, Failure> {
        self.run("kubectl", arguments, &input.to_string()).await?.success()
    }

    /// Makes an object, or fails with what the API server has against it.
    pub async fn create(&self, manifest: &Value) -> Result<Value, Failure> {
        object(&self.kubectl_on(manifest, &["create", "-o", "json", "-f", "-"]).await?)
    }

    /// What the API server would make of an object, with what is injected into it.
    pub async fn made(&self, manifest: &Value) -> Result<Value, Failure> {
        object(&self.kubectl_on(manifest, &["create", "--dry-run=server", "-o", "json", "-f", "-"]).await?)
    }

    /// `kubectl get ARGUMENTS` as JSON.
    pub async fn get(&self, arguments: &[&str]) -> Result<Value, Failure> {
        object(&self.kubectl(&[&["get", "-o", "json"], arguments].concat()).await?)
    }

    /// Runs helm and returns what it wrote; fails unless its exit code is 0.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.run("helm", arguments, "").await?.success()
    }

    /// Runs helm, however it ends.
    pub async fn try_helm(&self, arguments: &[&str]) -> Result<Told, Failure> {
        self.run("helm", arguments, "").await
    }

    /// Runs a script in the workspace's root directory, which finds kubectl, helm and the cluster as the reader of a
    /// manual would; it ends at the first command that fails.
    pub async fn script(&self, script: &str) -> Result<Told, Failure> {
        let mut command = Command::new("/bin/bash");
        command.args(["-euo", "pipefail", "-c", script]);
        self.execute(command, "").await
    }

    /// Where kubectl and helm leave what they remember.
    pub(super) fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    async fn run(&self, name: &str, arguments: &[&str], input: &str) -> Result<Told, Failure> {
        let mut command = Command::new(program(name)?);
        command.args(arguments);
        self.execute(command, input).await
    }

    async fn execute(&self, mut command: Command, input: &str) -> Result<Told, Failure> {
        let what = format!("{:?}", command.as_std());
        let tools = program("kubectl")?.parent().map(PathBuf::from).unwrap_or_default();
        let others = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(workspace())
            .env_clear()
            .env("PATH", format!("{}:{others}", tools.display()))
            .env("HOME", self.home())
            .env("KUBECONFIG", self.configuration.admin())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().or_fail(format!("start {what}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that does not read its input has no use for it.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        let output = timeout(START, child.wait_with_output()).await;
        let output = output.or_fail(format!("run {what} within {START:?}"))?.or_fail(format!("run {what}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Told { output: text(&output.stdout), errors: text(&output.stderr), status: output.status }.of(what))
    }
}

impl Told {
    /// Standard output when the exit code is 0, else a failure with all that was said.
    pub fn success(self) -> Result<String, Failure> {
        match self.status.success() {
            true => Ok(self.output),
            false => Err(Failure::new(format!("{}\n{}{}", self.status, self.output, self.errors))),
        }
    }

    /// Says in its errors which command it was.
    fn of(mut self, command: String) -> Self {
        if !self.status.success() {
            self.errors.push_str(&format!("({command})"));
        }
        self
    }
}

/// Reads JSON that a tool wrote.
pub fn object(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).or_fail(format!("read {text:?} as JSON"))
}
