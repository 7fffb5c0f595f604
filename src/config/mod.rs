//! The environment as typed values, read once; each consumer gets only its own part.

mod admin;
mod ca;
mod duration;
mod env;
mod file_resource;
mod files;
mod identity;
mod key;
mod kind;
mod log;
mod memory;
mod names;
mod on_change;
mod output;
mod proxy_config;
mod reader;
mod roots;
mod rotation;
mod sandbox;
mod sds;
mod source;
mod system_roots;
mod termination;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod variables;
mod wait;

use std::path::PathBuf;

use locked::Need;

use crate::identity::{KeyAlgorithm, KeySpec};
use env::is_service_link;
use proxy_config::ProxyConfig;
use reader::Reader;

pub use admin::{AdminAddress, AdminConfig, AdminTls};
pub use ca::{CaAddress, CaConfig, CaHeader, CaRoots, MutualTls, ServerName};
pub use duration::parse_go_duration;
pub use env::{Env, ProcessEnv, arguments};
pub use file_resource::FileResource;
pub use files::{FileCheck, FilesConfig};
pub use identity::IdentityConfig;
pub use kind::Kind;
pub use log::{LogConfig, LogFormat, LogLevel, SCOPES};
pub use memory::MemoryConfig;
pub use on_change::{AdminUrl, OnChange};
pub use output::OutputConfig;
pub use reader::Mistake;
pub use roots::RootsConfig;
pub use rotation::{GracePeriod, RotationConfig, Schedule, WINDOW};
pub use sandbox::{Landlock, SandboxConfig};
pub use sds::{SOCKET_DIRECTORY, SdsConfig, Service, directory_of, overflow_uid};
pub use source::{MountedFiles, SourceConfig, WorkloadApiSource};
pub use system_roots::system_roots;
pub use termination::termination_log;
pub use tls::{CaTls, group_name};
pub use token::TokenConfig;
pub use variables::{VARIABLES, Variable};
pub use wait::WaitFor;

/// Everything that the environment says, in the parts that the modules take.
#[derive(Debug)]
pub struct Config {
    /// Where the certificate comes from.
    pub source: SourceConfig,
    /// Who the workload is.
    pub identity: IdentityConfig,
    /// What keys are made.
    pub key: KeySpec,
    /// Where the service-account token comes from.
    pub token: TokenConfig,
    /// How the CA is reached.
    pub ca: CaConfig,
    /// When certificates are renewed.
    pub rotation: RotationConfig,
    /// How files that others write are followed.
    pub files: FilesConfig,
    /// Where the certificate is written to, if anywhere.
    pub output: Option<OutputConfig>,
    /// What is done when what connections are verified with has changed, if anything.
    pub on_change: Option<OnChange>,
    /// How SDS is served.
    pub sds: SdsConfig,
    /// How the SPIFFE Workload API is served, if it is.
    pub workload_api: Option<SdsConfig>,
    /// What a command is started after.
    pub wait: WaitFor,
    /// What is shown to whom.
    pub admin: AdminConfig,
    /// How keys are protected in memory.
    pub memory: MemoryConfig,
    /// What the process denies itself once all is open.
    pub sandbox: SandboxConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Where the reason of a fatal end is written for Kubernetes.
    pub termination_log: PathBuf,
    /// What is no mistake, and should be told.
    pub notes: Vec<&'static str>,
}

impl Config {
    /// How much secret memory the keys will take: those of files can be of any kind.
    pub fn secret_memory(&self) -> Need {
        let makes_small = !self.source.ca || !matches!(self.key.algorithm, KeyAlgorithm::Rsa { .. });
        let reads = self.source.files.is_some() || self.source.spiffe.is_some() || self.ca.provisioned.is_some();
        if makes_small && !reads { Need::Usual } else { Need::Most }
    }

    /// Reads the whole environment.
    ///
    /// # Errors
    /// All mistakes at once: values that cannot be parsed, what is missing, and `SDS_SHIM_` names that do not exist.
    pub fn from_env(env: &dyn Env) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(env);
        let token = token::read(&mut reader);
        let proxy = reader.parse_with(&variables::PROXY_CONFIG, ProxyConfig::parse).unwrap_or_default();
        let ca = ca::read(&mut reader, proxy.discovery_address.as_deref());
        let compat = reader.choice_if_set(&variables::SDS_SHIM_COMPAT, [()]).is_some();
        let source = source::read(&mut reader, token.file.is_none());
        let identity = identity::read(&mut reader, token.file.is_none(), source.ca);
        let roots = roots::read(&mut reader, &identity.trust_domain, &source, &ca.roots, proxy.ca_certificates);
        let sds = sds::read(&mut reader);
        sds::check_source(&mut reader, &sds, &source);
        let config = Self {
            identity,
            key: key::read(&mut reader, compat),
            rotation: rotation::read(&mut reader, compat, roots),
            ca,
            files: files::read(&mut reader),
            output: output::read(&mut reader, token.file.is_none()),
            on_change: on_change::read(&mut reader, token.file.is_none()),
            workload_api: sds::workload_api(&mut reader, token.file.is_none(), &sds, &source),
            sds,
            wait: wait::read(&mut reader, token.file.is_none()),
            admin: admin::read(&mut reader, token.file.is_none()),
            memory: memory::read(&mut reader),
            sandbox: sandbox::read(&mut reader),
            log: log::read(&mut reader),
            termination_log: termination_log(env),
            source,
            token,
            notes: std::mem::take(&mut reader.notes),
        };
        for name in env.names().into_iter().filter(|name| name.starts_with("SDS_SHIM_")) {
            if !VARIABLES.iter().any(|variable| variable.name == name) && !is_service_link(env, &name) {
                reader.unknown_name(&name);
            }
        }
        let mistakes = reader.finish();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }
}
