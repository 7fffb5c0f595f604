//! The command line.

use std::{ffi::OsString, fmt::Write as _, time::Duration};

use crate::{
    client::{Form, Question},
    config::{VARIABLES, parse_go_duration},
};

/// How long `wait` waits when it is not told.
const WAIT: Duration = Duration::from_secs(60);

/// What the process is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve SDS (the default).
    Serve,
    /// Serve SDS for as long as this program runs.
    Exec {
        /// What to start.
        program: OsString,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
    /// Ask a shim that runs.
    Ask(Question),
    /// Look at the environment and the files.
    Check,
    /// Print this text and end.
    Print(String),
}

/// A command line that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// There is no such command.
    #[error("{0}: no such command; `sds-shim help` lists them")]
    Unknown(String),
    /// There is nothing to execute.
    #[error("missing program: sds-shim exec [--] PROGRAM ARGUMENT...")]
    NoProgram,
    /// There is no name to get.
    #[error("missing name: sds-shim get NAME, such as default or ROOTCA")]
    NoName,
    /// The time to wait is none.
    #[error("--timeout: {0}")]
    Timeout(&'static str),
}

const HELP: &str = "sds-shim gives an Envoy sidecar its identity.

Usage: sds-shim [COMMAND]

  serve     obtain a certificate, keep it fresh, and serve it over SDS (default)
  exec [--] PROGRAM ARGUMENT...
            serve while running the program: start it once the SDS socket is listening or, with
            SDS_SHIM_WAIT=certificate, once the first certificate is issued; forward signals to it; reap orphans;
            exit when it exits, with its exit code (128 + n after signal n, 127 not found, 126 not executable)
  status [--json|--table|--row]
            show the running shim's identity, certificates, renewal, CA, streams and memory: by default as a table
            on a terminal and as JSON elsewhere; --row prints one tab-separated line, for a table of many shims
  health    exit with 0 if it is ready, else with 1 and the reason: for exec probes
  wait [--timeout DURATION]
            wait until it is ready, by default for at most 60s: for start-up probes and scripts
  renew     renew the certificate now, or re-read the mounted files where these are served, and wait for the result
  get NAME  print the public part of a secret: a certificate chain or trust anchors, never a key
  check     validate the environment and the files it names, and print the result; exit with 64 if it is invalid
  env       list the environment variables
  version   print the version
  help      print this text

Everything is configured by environment variables; paths are relative to the working directory.
SIGUSR1 renews the certificate now, also with exec. SIGTERM shuts the process down; with exec it goes to the program.
";

/// Reads the arguments.
///
/// # Errors
/// When they name no command.
pub fn parse(arguments: Vec<OsString>) -> Result<Command, UsageError> {
    if arguments.first().is_some_and(|first| first == "exec") {
        return exec(arguments);
    }
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    Ok(match words[..] {
        [] | ["serve"] => Command::Serve,
        ["status"] => Command::Ask(Question::Status(Form::Fitting)),
        ["status", "--json"] => Command::Ask(Question::Status(Form::Json)),
        ["status", "--table"] => Command::Ask(Question::Status(Form::Table)),
        ["status", "--row"] => Command::Ask(Question::Status(Form::Row)),
        ["health"] => Command::Ask(Question::Health),
        ["wait"] => Command::Ask(Question::Wait(WAIT)),
        ["wait", "--timeout", text] => {
            Command::Ask(Question::Wait(parse_go_duration(text).map_err(UsageError::Timeout)?))
        }
        ["wait", option] if option.starts_with("--timeout=") => {
            let text = option.trim_start_matches("--timeout=");
            Command::Ask(Question::Wait(parse_go_duration(text).map_err(UsageError::Timeout)?))
        }
        ["renew"] => Command::Ask(Question::Renew),
        ["get"] => return Err(UsageError::NoName),
        ["get", name] => Command::Ask(Question::Get(name.to_owned())),
        ["check"] => Command::Check,
        ["env"] => Command::Print(variables()),
        ["version" | "--version" | "-V"] => Command::Print(version()),
        ["help" | "--help" | "-h"] => Command::Print(HELP.to_owned()),
        ["serve" | "env" | "version" | "help" | "status" | "health" | "wait" | "renew" | "check", extra, ..]
        | ["get", _, extra, ..]
        | [extra, ..] => {
            return Err(UsageError::Unknown(extra.to_owned()));
        }
    })
}

/// Everything after the program is the program's own, as it is.
fn exec(arguments: Vec<OsString>) -> Result<Command, UsageError> {
    let mut arguments = arguments.into_iter().skip(1).peekable();
    if arguments.next_if(|word| word == "--").is_none()
        && let Some(option) = arguments.next_if(|word| word.as_encoded_bytes().starts_with(b"-"))
    {
        return Err(UsageError::Unknown(option.to_string_lossy().into_owned()));
    }
    let program = arguments.next().ok_or(UsageError::NoProgram)?;
    Ok(Command::Exec { program, arguments: arguments.collect() })
}

fn version() -> String {
    format!("sds-shim {} ({})\n", env!("CARGO_PKG_VERSION"), openssl::version::version())
}

fn variables() -> String {
    VARIABLES.iter().fold(String::new(), |mut text, variable| {
        let _ = writeln!(
            text,
            "{}\n    {} (default: {})\n    {}",
            variable.name, variable.kind, variable.default, variable.help
        );
        text
    })
}
