//! The environment as typed values, read once; each consumer gets only its own part.

mod ca;
mod duration;
mod env;
mod reader;
#[cfg(test)]
mod tests;
mod variables;

use std::{collections::BTreeSet, path::PathBuf};

use locked::Level;

use crate::identity::{KeyAlgorithm, KeyEncoding, KeySpec, SpiffeId, TrustDomain};
use reader::Reader;

pub use ca::{CaConfig, CaHeader, CaRoots, MutualTls, ServerName};
pub use env::{Env, ProcessEnv, arguments};
pub use reader::Mistake;
pub use variables::{VARIABLES, Variable};

/// Directory of the workload SDS socket, relative to the working directory (contract with Istio's agent).
pub const SOCKET_DIRECTORY: &str = "./var/run/secrets/workload-spiffe-uds";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";

/// Everything that the environment says, in the parts that the modules take.
#[derive(Debug)]
pub struct Config {
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
    /// How SDS is served.
    pub sds: SdsConfig,
    /// How keys are protected in memory.
    pub memory: MemoryConfig,
    /// What is logged.
    pub log: LogLevel,
}

/// Who the workload is.
#[derive(Debug)]
pub struct IdentityConfig {
    /// The trust domain of every identity that is asked for.
    pub trust_domain: TrustDomain,
    /// The workload's own SPIFFE ID; `None` when each request brings the token that tells it.
    pub spiffe_id: Option<SpiffeId>,
}

/// Where the service-account token comes from.
#[derive(Debug)]
pub struct TokenConfig {
    /// The projected file; `None` when each request brings its own token.
    pub file: Option<PathBuf>,
    /// The audience that a token must carry.
    pub audience: String,
}

/// When certificates are renewed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotationConfig {
    /// Istio's ratio and jitter; `None` for our own default window.
    pub grace_period: Option<GracePeriod>,
}

/// `SECRET_GRACE_PERIOD_RATIO` and its jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GracePeriod {
    /// Share of the life that is left at the renewal.
    pub ratio: f64,
    /// Distance from the ratio within which the share is chosen.
    pub jitter: f64,
}

/// How SDS is served.
#[derive(Debug)]
pub struct SdsConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Users who may connect beside our own.
    pub allowed_uids: BTreeSet<u32>,
}

/// How keys are protected in memory.
#[derive(Debug)]
pub struct MemoryConfig {
    /// Least protection with which to start.
    pub require: Level,
    /// Size of the arena in bytes, guard pages included.
    pub arena_bytes: usize,
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs a person.
    Error,
    /// Also what may become an outage.
    Warn,
    /// Also each change of state.
    Info,
    /// Also each step.
    Debug,
}

impl Config {
    /// Reads the whole environment.
    ///
    /// # Errors
    /// All mistakes at once: values that cannot be parsed, what is missing, and `SDS_SHIM_` names that do not exist.
    pub fn from_env(env: &dyn Env) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(env);
        let token = token(&mut reader);
        let config = Self {
            identity: identity(&mut reader, token.file.is_none()),
            key: key(&mut reader),
            ca: ca::read(&mut reader),
            rotation: rotation(&mut reader),
            sds: sds(&mut reader),
            memory: memory(&mut reader),
            log: log(&mut reader),
            token,
        };
        for name in env.names().into_iter().filter(|name| name.starts_with("SDS_SHIM_")) {
            if !VARIABLES.iter().any(|variable| variable.name == name) {
                reader.unknown_name(&name);
            }
        }
        let mistakes = reader.finish();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }
}

fn identity(reader: &mut Reader<'_>, from_request: bool) -> IdentityConfig {
    let trust_domain = reader.parsed(&variables::TRUST_DOMAIN).unwrap_or_default();
    let mut part = |variable| {
        let value = reader.parse_with(variable, |text| SpiffeId::check_segment(text).map(|()| text.to_owned()));
        if value.is_none() && !from_request && reader.env().value(variable.name).is_none_or(|v| v.is_empty()) {
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

fn key(reader: &mut Reader<'_>) -> KeySpec {
    let ecdsa = reader.choice(&variables::ECC_SIGNATURE_ALGORITHM, &[("ECDSA", ())]);
    let curve = reader.choice(&variables::ECC_CURVE, &[("P256", KeyAlgorithm::P256), ("P384", KeyAlgorithm::P384)]);
    let rsa = reader.parse_with(&variables::WORKLOAD_RSA_KEY_SIZE, |text| match text.parse::<u32>() {
        Ok(bits) if (2048..=4096).contains(&bits) && bits % 8 == 0 => Ok(KeyAlgorithm::Rsa { bits }),
        _ => Err("a number of bits from 2048 to 4096 is expected"),
    });
    let algorithm = match (ecdsa, rsa) {
        (None, Some(rsa)) => rsa,
        _ => curve.unwrap_or(KeyAlgorithm::P256),
    };
    let encoding = match reader.boolean(&variables::PKCS8_KEY) {
        Some(false) => KeyEncoding::Traditional,
        _ => KeyEncoding::Pkcs8,
    };
    KeySpec { algorithm, encoding }
}

fn token(reader: &mut Reader<'_>) -> TokenConfig {
    let file = reader
        .choice(&variables::SDS_SHIM_TOKEN_SOURCE, &[("file", Some(())), ("request", None)])
        .unwrap_or(Some(()))
        .map(|()| PathBuf::from(TOKEN_FILE));
    let audience = reader.text(&variables::SDS_SHIM_TOKEN_AUDIENCE).unwrap_or_else(|| "istio-ca".to_owned());
    TokenConfig { file, audience }
}

/// The arena as it is made before the environment is read.
const ARENA_KIB: usize = 2048;
/// As much as the allocator can manage in one block.
const MAX_ARENA_KIB: usize = 64 * 1024;
fn rotation(reader: &mut Reader<'_>) -> RotationConfig {
    let ratio = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO);
    let jitter = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO_JITTER);
    let grace_period = (ratio.is_some() || jitter.is_some())
        .then(|| GracePeriod { ratio: ratio.unwrap_or(0.5), jitter: jitter.unwrap_or(0.1) });
    RotationConfig { grace_period }
}

fn sds(reader: &mut Reader<'_>) -> SdsConfig {
    let file = reader
        .parse_with(&variables::WORKLOAD_IDENTITY_SOCKET_FILE, |text| {
            if text.contains('/') || matches!(text, "." | "..") {
                Err("a file name is expected, not a path: the directory is fixed")
            } else {
                Ok(text.to_owned())
            }
        })
        .unwrap_or_else(|| "socket".to_owned());
    let allowed_uids = reader
        .parse_with(&variables::SDS_SHIM_ALLOW_UIDS, |text| {
            text.split(',')
                .map(|uid| uid.trim().parse::<u32>().map_err(|_| "user ids are expected, such as 1337,2000"))
                .collect::<Result<_, _>>()
        })
        .unwrap_or_default();
    SdsConfig { socket: PathBuf::from(SOCKET_DIRECTORY).join(file), allowed_uids }
}

fn memory(reader: &mut Reader<'_>) -> MemoryConfig {
    let levels = [("secret", Level::Secret), ("locked", Level::Locked), ("none", Level::None)];
    let kib = reader.parse_with(&variables::SDS_SHIM_ARENA_KIB, |text| match text.parse::<usize>() {
        Ok(kib) if (ARENA_KIB..=MAX_ARENA_KIB).contains(&kib) => Ok(kib),
        _ => Err(format!("a number from {ARENA_KIB} to {MAX_ARENA_KIB} is expected")),
    });
    MemoryConfig {
        require: reader.choice(&variables::SDS_SHIM_REQUIRE_LOCKED, &levels).unwrap_or(Level::Locked),
        arena_bytes: kib.unwrap_or(ARENA_KIB) * 1024,
    }
}

fn log(reader: &mut Reader<'_>) -> LogLevel {
    let levels =
        [("error", LogLevel::Error), ("warn", LogLevel::Warn), ("info", LogLevel::Info), ("debug", LogLevel::Debug)];
    reader.choice(&variables::SDS_SHIM_LOG, &levels).unwrap_or(LogLevel::Info)
}
