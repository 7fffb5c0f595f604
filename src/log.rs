//! One line an event, on standard error.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::SetGlobalDefaultError,
};

use crate::{clock, config::LogLevel};

/// Longest line; what a peer says is cut before, so only a mistake of ours could reach it.
const MAX_LINE: usize = 4096;

struct StderrLog {
    max: Level,
    spans: AtomicU64,
}

/// Sends this process's events to standard error from now on.
///
/// # Errors
/// When it was called before.
pub fn start(level: LogLevel) -> Result<(), SetGlobalDefaultError> {
    let max = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    tracing::subscriber::set_global_default(StderrLog { max, spans: AtomicU64::new(1) })
}

impl Subscriber for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Only our own events: what the HTTP libraries would say may hold headers.
        metadata.is_event() && *metadata.level() <= self.max && metadata.target().starts_with("sds_shim")
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
        let metadata = event.metadata();
        let scope = metadata.target().trim_start_matches("sds_shim::").split("::").next().unwrap_or_default();
        let mut line = format!("{time} {:5} {scope}: {}{}", metadata.level(), fields.message, fields.others);
        if let Some((cut, _)) = line.char_indices().nth(MAX_LINE) {
            line.truncate(cut);
        }
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
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => {
                let _ = write!(self.others, " {name}={value:?}");
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}
