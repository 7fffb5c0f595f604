//! Containers.

use serde::{Deserialize, de::IgnoredAny};

use super::{FieldRef, Seccomp};
use crate::Failure;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Container {
    pub(in super::super) name: String,
    pub(in super::super) image: String,
    #[serde(default)]
    pub(in super::super) command: Vec<String>,
    #[serde(default)]
    pub(in super::super) args: Vec<String>,
    pub(in super::super) working_dir: Option<String>,
    #[serde(default)]
    pub(in super::super) env: Vec<Variable>,
    #[serde(default)]
    pub(in super::super) resources: Resources,
    #[serde(default)]
    pub(in super::super) volume_mounts: Vec<Mount>,
    pub(in super::super) startup_probe: Option<Probe>,
    pub(in super::super) liveness_probe: Option<Probe>,
    pub(in super::super) readiness_probe: Option<Probe>,
    #[serde(default)]
    pub(in super::super) lifecycle: Lifecycle,
    #[serde(default)]
    pub(in super::super) security_context: Security,
    /// Of an init container: that makes it a sidecar.
    pub(in super::super) restart_policy: Option<SidecarPolicy>,
    pub(in super::super) termination_message_path: Option<String>,
    #[serde(rename = "terminationMessagePolicy")]
    _termination_message_policy: Option<IgnoredAny>,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: Option<IgnoredAny>,
    /// They give ports names and open none.
    #[serde(default)]
    pub(in super::super) ports: Vec<Port>,
}

#[derive(Deserialize)]
pub(in super::super) enum SidecarPolicy {
    Always,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Port {
    pub(in super::super) container_port: u16,
    pub(in super::super) name: Option<String>,
    #[serde(rename = "protocol")]
    _protocol: Option<Protocol>,
}

/// A port by its number, or by the name that a container gives it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(in super::super) enum PortRef {
    Number(u16),
    Name(String),
}

impl PortRef {
    /// Its number, where these are the ports that there are.
    pub(in super::super) fn number<'a>(&self, mut ports: impl Iterator<Item = &'a Port>) -> Result<u16, Failure> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Name(name) => {
                let found = ports.find(|port| port.name.as_ref() == Some(name));
                found.map(|port| port.container_port).ok_or_else(|| Failure::new(format!("no port is called {name}")))
            }
        }
    }
}

#[derive(Deserialize)]
enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Variable {
    pub(in super::super) name: String,
    pub(in super::super) value: Option<String>,
    pub(in super::super) value_from: Option<ValueFrom>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) enum ValueFrom {
    FieldRef(FieldRef),
    ConfigMapKeyRef(Key),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Key {
    pub(in super::super) name: String,
    pub(in super::super) key: String,
    #[serde(default)]
    pub(in super::super) optional: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Resources {
    #[serde(default)]
    pub(in super::super) limits: Amounts,
    #[serde(default)]
    pub(in super::super) requests: Amounts,
}

/// In Kubernetes' words, as `250m` or `16Mi`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Amounts {
    pub(in super::super) cpu: Option<String>,
    pub(in super::super) memory: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Mount {
    pub(in super::super) name: String,
    pub(in super::super) mount_path: String,
    #[serde(default)]
    pub(in super::super) read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Probe {
    pub(in super::super) exec: Option<Exec>,
    pub(in super::super) http_get: Option<HttpGet>,
    pub(in super::super) tcp_socket: Option<TcpSocket>,
    #[serde(default)]
    pub(in super::super) initial_delay_seconds: u64,
    #[serde(default = "ten")]
    pub(in super::super) period_seconds: u64,
    #[serde(default = "one")]
    pub(in super::super) timeout_seconds: u64,
    #[serde(default = "three")]
    pub(in super::super) failure_threshold: u64,
    #[serde(default = "one")]
    pub(in super::super) success_threshold: u64,
}

fn one() -> u64 {
    1
}

fn three() -> u64 {
    3
}

fn ten() -> u64 {
    10
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Exec {
    pub(in super::super) command: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct HttpGet {
    pub(in super::super) path: String,
    pub(in super::super) port: PortRef,
    #[serde(rename = "scheme")]
    _scheme: Option<Scheme>,
}

#[derive(Deserialize)]
enum Scheme {
    #[serde(rename = "HTTP")]
    Http,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TcpSocket {
    pub(in super::super) port: PortRef,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Lifecycle {
    pub(in super::super) post_start: Option<Hook>,
    pub(in super::super) pre_stop: Option<Hook>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Hook {
    pub(in super::super) exec: Exec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Security {
    pub(in super::super) run_as_user: Option<u32>,
    pub(in super::super) run_as_group: Option<u32>,
    pub(in super::super) run_as_non_root: Option<bool>,
    #[serde(default)]
    pub(in super::super) capabilities: Capabilities,
    #[serde(default)]
    pub(in super::super) read_only_root_filesystem: bool,
    pub(in super::super) allow_privilege_escalation: Option<bool>,
    pub(in super::super) seccomp_profile: Option<Seccomp>,
    #[serde(default, rename = "privileged")]
    pub(in super::super) _privileged: No,
}

/// `false`, and nothing else.
#[derive(Default, Deserialize)]
#[serde(try_from = "bool")]
pub(in super::super) struct No;

impl TryFrom<bool> for No {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Err("privileged containers are not run here") } else { Ok(Self) }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Capabilities {
    #[serde(default)]
    pub(in super::super) add: Vec<String>,
    #[serde(default)]
    pub(in super::super) drop: Vec<String>,
}
