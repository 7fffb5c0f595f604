//! One line an event, on standard error.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::SetGlobalDefaultError,
};

use crate::{
    clock,
    config::{LogConfig, LogFormat, LogLevel, SCOPES},
};

/// Longest line; what a peer says is cut before, so only a mistake of ours could reach it.
const MAX_LINE: usize = 4096;

struct StderrLog {
    config: LogConfig,
    spans: AtomicU64,
}

/// Sends this process's events to standard error from now on.
///
/// # Errors
/// When it was called before.
pub fn start(config: LogConfig) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(StderrLog { config, spans: AtomicU64::new(1) })
}

/// The top-level module that an event comes from.
fn scope(metadata: &Metadata<'_>) -> &'static str {
    let inside = metadata.target().strip_prefix("sds_shim::").unwrap_or_default();
    let name = inside.split("::").next().unwrap_or_default();
    SCOPES.into_iter().find(|scope| *scope == name).unwrap_or("main")
}

fn severity(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

impl Subscriber for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Only our own events: what the HTTP libraries would say may hold headers.
        if !metadata.is_event() || !metadata.target().starts_with("sds_shim") || *metadata.level() == Level::TRACE {
            return false;
        }
        let scope = scope(metadata);
        let wanted = self.config.scopes.iter().rev().find(|(name, _)| *name == scope);
        severity(*metadata.level()) <= wanted.map_or(self.config.level, |(_, level)| *level)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = humantime::format_rfc3339_millis(clock::wall_clock());
        let (level, scope) = (event.metadata().level(), scope(event.metadata()));
        let mut line = match self.config.format {
            LogFormat::Text => fields.text(&format!("{time} {level:5} {scope}: ")),
            LogFormat::Json => fields.json(&time.to_string(), level.as_str(), scope),
        };
        line.push('\n');
        // One write a line; with standard error gone there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
    /// Which of them are not to be quoted in a text.
    plain: Vec<&'static str>,
}

impl Fields {
    fn text(self, head: &str) -> String {
        let mut line = format!("{head}{}", self.message);
        for (name, value) in self.others {
            let _ = match value {
                Value::String(text) if self.plain.contains(&name) => write!(line, " {name}={text}"),
                // As Rust writes it, so that the line stays one.
                Value::String(text) => write!(line, " {name}={text:?}"),
                other => write!(line, " {name}={other}"),
            };
        }
        if let Some((cut, _)) = line.char_indices().nth(MAX_LINE) {
            line.truncate(cut);
        }
        line
    }

    fn json(self, time: &str, level: &str, scope: &str) -> String {
        let message: String = self.message.chars().take(MAX_LINE).collect();
        let mut line = json!({ "time": time, "level": level.to_lowercase(), "scope": scope, "message": message });
        for (name, value) in self.others {
            line[name] = value;
        }
        line.to_string()
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => self.others.push((name, value.into())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                let _ = write!(self.message, "{value:?}");
            }
            // `%value` comes here as well.
            name => {
                self.plain.push(name);
                self.others.push((name, Value::String(format!("{value:?}"))));
            }
        }
    }
}
