//! The API server as a kubelet asks it.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use openssl::base64::decode_block;
use serde_json::{Value, json};

use super::{Cluster, object, program};
use crate::{
    Failure, OrFail,
    kubelet::{self, TokenWish},
};

/// What a node's pods ask the API server for.
struct Asking {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// Where kubectl remembers what kinds there are.
    home: PathBuf,
}

impl Cluster {
    /// For a [`Node`](kubelet::Node) whose pods are this cluster's.
    pub fn for_node(&self) -> Result<impl kubelet::Cluster + 'static, Failure> {
        let (kubeconfig, home) = (self.configuration.admin(), self.home());
        Ok(Asking { kubectl: program("kubectl")?, kubeconfig, home })
    }

    /// Tells the API server that a pod runs and is ready, as kubelet does.
    pub async fn is_ready(&self, pod: &Value) -> Result<(), Failure> {
        let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
        let conditions = [json!({ "type": "Ready", "status": "True" })];
        let patch = json!({ "status": { "phase": "Running", "conditions": conditions } }).to_string();
        let (name, namespace) = (text("name"), text("namespace"));
        self.kubectl(&["patch", "pod", &name, "-n", &namespace, "--subresource=status", "-p", &patch]).await.map(drop)
    }
}

impl kubelet::Cluster for Asking {
    fn token(&self, wish: &TokenWish<'_>) -> Result<String, Failure> {
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": wish.pod, "uid": wish.uid });
        let audiences: Vec<_> = wish.audience.into_iter().collect();
        let spec = json!({
            "audiences": audiences,
            "expirationSeconds": wish.expiration_seconds,
            "boundObjectRef": bound,
        });
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", wish.namespace, wish.service_account);
        let answer = self.ask(&["create", "--raw", &path, "-f", "-"], &request.to_string())?;
        let token = object(&answer)?["status"]["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| Failure::new("a TokenRequest was answered without a token"))
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        self.data("configmap", namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let Some(mut data) = self.data("secret", namespace, name)? else { return Ok(None) };
        for (key, content) in &mut data {
            let decoded = decode_block(content).or_fail(format!("decode {key}"))?;
            *content = String::from_utf8(decoded).or_fail(format!("read {key}"))?;
        }
        Ok(Some(data))
    }
}

impl Asking {
    fn data(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let answer = self.ask(&["get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json"], "")?;
        if answer.is_empty() {
            return Ok(None);
        }
        serde_json::from_value(object(&answer)?["data"].take()).or_fail(format!("read the {kind} {name}")).map(Some)
    }

    fn ask(&self, arguments: &[&str], input: &str) -> Result<String, Failure> {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env_clear().env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().or_fail("start kubectl")?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_bytes()).or_fail("tell kubectl what to send")?;
        }
        let output = child.wait_with_output().or_fail("wait for kubectl")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(Failure::new(format!("kubectl {arguments:?}: {}", text(&output.stderr)))),
        }
    }
}
