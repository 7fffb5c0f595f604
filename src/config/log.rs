use super::{reader::Reader, variables};

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// Least severe level that is logged.
    pub level: LogLevel,
    /// Other levels for some scopes.
    pub scopes: Vec<(&'static str, LogLevel)>,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// The modules that say something, as the log names them.
pub const SCOPES: [&str; 10] =
    ["admin", "app", "files", "memory", "on_change", "rotation", "sandbox", "sds", "supervise", "workload_api"];

const LEVELS: [(&str, LogLevel); 4] =
    [("error", LogLevel::Error), ("warn", LogLevel::Warn), ("info", LogLevel::Info), ("debug", LogLevel::Debug)];

/// The level of what no scope is named for, where only scopes are named.
const ABOVE_SCOPES: LogLevel = LogLevel::Info;

pub(super) fn read(reader: &mut Reader<'_>) -> LogConfig {
    let (level, scopes) = reader.parse_with(&variables::SDS_SHIM_LOG, levels).unwrap_or((ABOVE_SCOPES, Vec::new()));
    let format = reader.choice(&variables::SDS_SHIM_LOG_FORMAT, [LogFormat::Text, LogFormat::Json]);
    LogConfig { format, level, scopes }
}

type Levels = (LogLevel, Vec<(&'static str, LogLevel)>);

/// `info,sds=debug`: a level for all, and others for scopes.
fn levels(text: &str) -> Result<Levels, String> {
    let level = |name: &str| LEVELS.iter().find(|(known, _)| *known == name).map(|(_, level)| *level);
    let (mut all, mut scopes) = (ABOVE_SCOPES, Vec::new());
    for part in text.split(',').map(str::trim) {
        let known = match part.split_once('=') {
            None => level(part).map(|level| all = level),
            Some((scope, name)) => SCOPES.iter().find(|known| **known == scope).zip(level(name)).map(|pair| {
                scopes.push((*pair.0, pair.1));
            }),
        };
        known.ok_or_else(|| {
            format!(
                "expected error, warn, info or debug, or SCOPE=LEVEL with one of {}, as in info,sds=debug",
                SCOPES.join(", ")
            )
        })?;
    }
    Ok((all, scopes))
}
