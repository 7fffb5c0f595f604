//! One line an event, on standard error.

use std::{
    fmt::{self, Write as _},
    io::{Stderr, Write as _},
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::SetGlobalDefaultError,
    warn,
};

use crate::{
    clock,
    config::{LogConfig, LogFormat, LogLevel, SCOPES},
};

/// Bytes of the longest line; what a peer says is cut before, so only a mistake of ours could reach it. One write of
/// so many to a pipe is never mixed with another's, and has room when the pipe says that it has some (pipe(7)).
const MAX_LINE: usize = 4096;

struct StderrLog {
    config: LogConfig,
    spans: AtomicU64,
    /// Lines that found no room since the last one that did.
    lost: AtomicU64,
}

/// Sends this process's events to standard error from now on.
///
/// # Errors
/// When it was called before.
pub fn start(config: LogConfig) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(StderrLog { config, spans: AtomicU64::new(1), lost: AtomicU64::new(0) })
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
        self.write(&line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl StderrLog {
    /// One write a line. A reader who has stopped to read must not stop us: what finds no room is lost and counted.
    fn write(&self, line: &str) {
        let mut stderr = std::io::stderr();
        if !has_room(&stderr) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // With standard error gone there is nobody to tell.
        let _ = stderr.write_all(line.as_bytes());
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            warn!("dropped {lost} log lines before the last one: standard error was not being read");
        }
    }
}

/// Whether a line can be written at once: the kernel promises room for a page, which no line exceeds.
fn has_room(stderr: &Stderr) -> bool {
    let mut descriptors = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // A descriptor that cannot be asked cannot be full either.
    poll(&mut descriptors, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
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
        line.truncate(line.floor_char_boundary(MAX_LINE - 1));
        line
    }

    fn json(self, time: &str, level: &str, scope: &str) -> String {
        let mut line = json!({ "time": time, "level": level.to_lowercase(), "scope": scope, "message": self.message });
        for (name, value) in self.others {
            line[name] = value;
        }
        let text = line.to_string();
        if text.len() < MAX_LINE {
            return text;
        }
        // Cut, it has to stay JSON: control characters and quotes take up to six bytes each.
        let message = &self.message[..self.message.floor_char_boundary(MAX_LINE / 8)];
        json!({ "time": time, "level": level.to_lowercase(), "scope": scope, "message": message }).to_string()
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
