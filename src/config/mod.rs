//! The environment as typed values, read once; each consumer gets only its own part.

mod admin;
mod ca;
mod duration;
mod env;
mod files;
mod log;
mod on_change;
mod proxy_config;
mod reader;
mod roots;
mod sds;
mod source;
mod system_roots;
#[cfg(test)]
mod tests;
mod tls;
mod variables;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use locked::{Level, Need};

use crate::identity::{KeyAlgorithm, KeyEncoding, KeySpec, SpiffeId, TrustDomain};
use env::is_service_link;
use proxy_config::ProxyConfig;
use reader::Reader;
use roots::roots;

pub use admin::{AdminAddress, AdminConfig};
pub use ca::{CaAddress, CaConfig, CaHeader, CaRoots, MutualTls, ServerName};
pub use duration::parse_go_duration;
pub use env::{Env, ProcessEnv, arguments};
pub use files::{FileCheck, FilesConfig};
pub use log::{LogConfig, LogFormat, LogLevel, SCOPES};
pub use on_change::{AdminUrl, OnChange};
pub use reader::Mistake;
pub use sds::overflow_uid;
pub use source::{MountedFiles, SourceConfig};
pub use system_roots::system_roots;
pub use tls::{CaTls, group_name};
pub use variables::{VARIABLES, Variable};

/// Directory of the workload SDS socket, relative to the working directory (contract with Istio's agent).
pub const SOCKET_DIRECTORY: &str = "./var/run/secrets/workload-spiffe-uds";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const OWN_TOKEN_FILE: &str = "./var/run/secrets/kubernetes.io/serviceaccount/token";

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
    /// What a command is started after.
    pub wait: WaitFor,
    /// What is shown to whom.
    pub admin: AdminConfig,
    /// How keys are protected in memory.
    pub memory: MemoryConfig,
    /// What is logged.
    pub log: LogConfig,
    /// What is no mistake, and should be told.
    pub notes: Vec<&'static str>,
}

/// Who the workload is.
#[derive(Debug)]
pub struct IdentityConfig {
    /// The trust domain of every identity that is asked for, unless a file tells another one.
    pub trust_domain: TrustDomain,
    /// The workload's own SPIFFE ID; `None` when each request brings the token that tells it, or nobody asks for a
    /// certificate and it is not told.
    pub spiffe_id: Option<SpiffeId>,
}

/// Where the service-account token comes from.
#[derive(Debug)]
pub struct TokenConfig {
    /// The projected file; `None` when each request brings its own token.
    pub file: Option<PathBuf>,
    /// The audience that a token must carry; `None` for any.
    pub audience: Option<String>,
}

/// When certificates are renewed, and which roots are served.
#[derive(Clone, Debug, PartialEq)]
pub struct RotationConfig {
    /// When a certificate is renewed.
    pub schedule: Schedule,
    /// Least time between two renewals that are asked for.
    pub forced_pause: Duration,
    /// What is served as `ROOTCA` beside what the CA answers.
    pub roots: RootsConfig,
}

/// When a certificate is renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedule {
    /// Istio's ratio and jitter; `None` for our own default window.
    pub grace_period: Option<GracePeriod>,
    /// Life that should always be left.
    pub availability_target: Option<Duration>,
}

/// Trust anchors beside those of the CA's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RootsConfig {
    /// PEM files. They are watched.
    pub files: Vec<PathBuf>,
    /// The file with revocation lists.
    pub crl: Option<PathBuf>,
    /// Whether it must be there.
    pub crl_required: bool,
    /// Whether no list is served once one of them cannot be used.
    pub crl_fail_open: bool,
    /// Whether only leaves are looked for in the lists.
    pub crl_leaf_only: bool,
    /// Our own trust domain, unless the file tells another one.
    pub trust_domain: TrustDomain,
    /// The file that tells our own trust domain. It is watched.
    pub trust_domain_file: Option<PathBuf>,
    /// Other trust domains, each with the PEM file of its anchors.
    pub domains: Vec<(TrustDomain, PathBuf)>,
    /// PEM texts.
    pub inline: Vec<String>,
    /// How long an anchor that all its sources have dropped is still served; `None` until the last leaf seen under
    /// it would have expired.
    pub grace: Option<Duration>,
}

/// `SECRET_GRACE_PERIOD_RATIO` and its jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GracePeriod {
    /// Share of the life that is left at the renewal.
    pub ratio: f64,
    /// Distance from the ratio within which the share is chosen.
    pub jitter: f64,
}

/// `OUTPUT_CERTS`: where key, chain and trust anchors are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// The directory.
    pub directory: PathBuf,
    /// Mode of the key's file.
    pub mode: u32,
    /// Group of the files; our own if none is given.
    pub gid: Option<u32>,
}

/// How SDS is served.
#[derive(Clone, Debug)]
pub struct SdsConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Users who may connect beside our own.
    pub allowed_uids: BTreeSet<u32>,
    /// Where files lie that these users may have by their names.
    pub file_directories: Vec<PathBuf>,
}

/// What must be there before the command of `sds-shim exec` is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The SDS socket.
    Socket,
    /// The first certificate.
    Certificate,
}

/// How keys are protected in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Least protection with which to start.
    pub require: Level,
    /// Size of the arena in bytes, guard pages included.
    pub arena_bytes: usize,
    /// Whether only the system calls that serving takes are left.
    pub strict_calls: bool,
}

impl Config {
    /// How much secret memory the keys will take: those of files can be of any kind.
    pub fn secret_memory(&self) -> Need {
        let makes_small = !self.source.ca || !matches!(self.key.algorithm, KeyAlgorithm::Rsa { .. });
        let reads = self.source.files.is_some() || self.ca.provisioned.is_some();
        if makes_small && !reads { Need::Usual } else { Need::Most }
    }
}

impl SdsConfig {
    /// What the commands need that only ask: where the socket is. Other mistakes are not theirs.
    ///
    /// # Errors
    /// All mistakes in what concerns the socket.
    pub fn from_env(env: &dyn Env) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(env);
        let config = sds::read(&mut reader);
        let mistakes = reader.finish();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }
}

/// Where the reason of a fatal end is written for Kubernetes.
pub fn termination_log(env: &dyn Env) -> PathBuf {
    Reader::new(env)
        .text(&variables::SDS_SHIM_TERMINATION_LOG)
        .unwrap_or_else(|| "/dev/termination-log".to_owned())
        .into()
}

impl Config {
    /// Reads the whole environment.
    ///
    /// # Errors
    /// All mistakes at once: values that cannot be parsed, what is missing, and `SDS_SHIM_` names that do not exist.
    pub fn from_env(env: &dyn Env) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(env);
        let token = token(&mut reader);
        let proxy = reader.parse_with(&variables::PROXY_CONFIG, ProxyConfig::parse).unwrap_or_default();
        let ca = ca::read(&mut reader, proxy.discovery_address.as_deref());
        let compat = reader.choice(&variables::SDS_SHIM_COMPAT, &[("istio", ())]).is_some();
        let source = source::read(&mut reader, token.file.is_none());
        let identity = identity(&mut reader, token.file.is_none(), source.ca);
        let roots = roots(&mut reader, &identity.trust_domain, &source, &ca.roots, proxy.ca_certificates);
        let config = Self {
            identity,
            key: key(&mut reader, compat),
            rotation: RotationConfig {
                schedule: schedule(&mut reader, compat),
                forced_pause: reader.duration(&variables::SDS_SHIM_RENEW_PAUSE).unwrap_or(Duration::from_secs(1)),
                roots,
            },
            ca,
            files: files::read(&mut reader),
            output: output(&mut reader, token.file.is_none()),
            on_change: on_change::read(&mut reader, token.file.is_none()),
            sds: sds::read(&mut reader),
            wait: wait(&mut reader, token.file.is_none()),
            admin: admin::read(&mut reader),
            memory: memory(&mut reader),
            log: log::read(&mut reader),
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

fn identity(reader: &mut Reader<'_>, from_request: bool, ca: bool) -> IdentityConfig {
    let trust_domain = reader.parsed(&variables::TRUST_DOMAIN).unwrap_or_default();
    let mut part = |variable| {
        let value = reader.parse_with(variable, |text| SpiffeId::check_segment(text).map(|()| text.to_owned()));
        if value.is_none() && !from_request && ca && reader.env().value(variable.name).is_none_or(|v| v.is_empty()) {
            reader.mistake(variable, "it is required: set it from the pod's own fields (downward API)");
        }
        value
    };
    let (namespace, service_account) = (part(&variables::POD_NAMESPACE), part(&variables::SERVICE_ACCOUNT));
    let spiffe_id = namespace
        .zip(service_account)
        .filter(|_| !from_request)
        .and_then(|(namespace, account)| SpiffeId::for_service_account(&trust_domain, &namespace, &account).ok());
    IdentityConfig { trust_domain, spiffe_id }
}

fn key(reader: &mut Reader<'_>, compat: bool) -> KeySpec {
    let ecdsa = reader.choice(&variables::ECC_SIGNATURE_ALGORITHM, &[("ECDSA", ())]);
    let curve = reader.choice(&variables::ECC_CURVE, &[("P256", KeyAlgorithm::P256), ("P384", KeyAlgorithm::P384)]);
    let rsa = reader.parse_with(&variables::WORKLOAD_RSA_KEY_SIZE, |text| match text.parse::<u32>() {
        Ok(bits) if (2048..=4096).contains(&bits) && bits % 8 == 0 => Ok(KeyAlgorithm::Rsa { bits }),
        _ => Err("expected a number of bits from 2048 to 4096"),
    });
    let algorithm = match (ecdsa, rsa) {
        (None, Some(rsa)) => rsa,
        (None, None) if compat => KeyAlgorithm::Rsa { bits: 2048 },
        _ => curve.unwrap_or(KeyAlgorithm::P256),
    };
    let encoding = match reader.boolean(&variables::PKCS8_KEY) {
        Some(false) => KeyEncoding::Traditional,
        None if compat => KeyEncoding::Traditional,
        _ => KeyEncoding::Pkcs8,
    };
    KeySpec { algorithm, encoding }
}

fn token(reader: &mut Reader<'_>) -> TokenConfig {
    let fetchers = [("JWT", false), ("GoogleComputeEngine", true)];
    if reader.choice(&variables::CREDENTIAL_FETCHER_TYPE, &fetchers) == Some(true) {
        reader.notes.push(
            "CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine: no token is fetched from the metadata server; the token's file \
             is used, which something else must write",
        );
    }
    let policies = [("third-party-jwt", (TOKEN_FILE, Some("istio-ca"))), ("first-party-jwt", (OWN_TOKEN_FILE, None))];
    // Any other value means the projected token to Istio's agent as well.
    let policy = reader.text(&variables::JWT_POLICY);
    let policy = policies.iter().find(|(name, _)| policy.as_deref() == Some(name));
    let (file, audience) = policy.unwrap_or(&policies[0]).1;
    let file = reader
        .choice(&variables::SDS_SHIM_TOKEN_SOURCE, &[("file", Some(file)), ("request", None)])
        .unwrap_or(Some(file))
        .map(PathBuf::from);
    let audience = reader.text(&variables::SDS_SHIM_TOKEN_AUDIENCE).or(audience.map(str::to_owned));
    TokenConfig { file, audience }
}

/// The arena as it is made before the environment is read.
const ARENA_KIB: usize = 2320;
/// Room for some 20,000 streams; beyond it, one process for so many is a mistake.
const MAX_ARENA_KIB: usize = 256 * 1024;

fn schedule(reader: &mut Reader<'_>, compat: bool) -> Schedule {
    let ratio = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO);
    let jitter = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO_JITTER);
    let usual_jitter = if compat { 0.01 } else { 0.1 };
    let grace_period = (ratio.is_some() || jitter.is_some() || compat)
        .then(|| GracePeriod { ratio: ratio.unwrap_or(0.5), jitter: jitter.unwrap_or(usual_jitter) });
    Schedule { grace_period, availability_target: reader.duration(&variables::SDS_SHIM_AVAILABILITY_TARGET) }
}

fn output(reader: &mut Reader<'_>, from_request: bool) -> Option<OutputConfig> {
    let mode = reader.parse_with(&variables::SDS_SHIM_OUTPUT_MODE, |text| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected an octal mode, such as 0640"),
    });
    let gid = reader.parse_with(&variables::SDS_SHIM_OUTPUT_GID, |text| {
        text.parse::<u32>().map_err(|_| "expected the number of a group")
    });
    let directory = reader.text(&variables::OUTPUT_CERTS)?.into();
    if from_request {
        reader
            .mistake(&variables::OUTPUT_CERTS, "with SDS_SHIM_TOKEN_SOURCE=request there is no certificate of our own");
    }
    Some(OutputConfig { directory, mode: mode.unwrap_or(0o640), gid })
}

fn wait(reader: &mut Reader<'_>, from_request: bool) -> WaitFor {
    let choices = [("socket", WaitFor::Socket), ("certificate", WaitFor::Certificate)];
    let wait = reader.choice(&variables::SDS_SHIM_WAIT, &choices).unwrap_or(WaitFor::Socket);
    if from_request && wait == WaitFor::Certificate {
        reader.mistake(&variables::SDS_SHIM_WAIT, "there is no certificate before the command sends its token");
    }
    wait
}

fn memory(reader: &mut Reader<'_>) -> MemoryConfig {
    let levels = [("secret", Level::Secret), ("locked", Level::Locked), ("none", Level::None)];
    let kib = reader.parse_with(&variables::SDS_SHIM_ARENA_KIB, |text| match text.parse::<usize>() {
        Ok(kib) if (ARENA_KIB..=MAX_ARENA_KIB).contains(&kib) => Ok(kib),
        _ => Err(format!("expected a number from {ARENA_KIB} to {MAX_ARENA_KIB}")),
    });
    MemoryConfig {
        require: reader.choice(&variables::SDS_SHIM_REQUIRE_LOCKED, &levels).unwrap_or(Level::Locked),
        arena_bytes: kib.unwrap_or(ARENA_KIB) * 1024,
        strict_calls: reader
            .choice(&variables::SDS_SHIM_SECCOMP, &[("strict", true), ("off", false)])
            .unwrap_or_default(),
    }
}
