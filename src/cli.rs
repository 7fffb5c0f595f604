//! The command line.

use std::fmt::Write as _;

use crate::config::VARIABLES;

/// What the process is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve SDS (the default).
    Serve,
    /// Print this text and end.
    Print(String),
}

/// A command line that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: no such command; `sds-shim help` lists them")]
pub struct UsageError(String);

const HELP: &str = "sds-shim gives an Envoy sidecar its identity.

Usage: sds-shim [COMMAND]

  serve     get a certificate, keep it fresh, serve it over SDS (default)
  env       list the environment variables
  version   print the version
  help      print this text

Everything is configured by environment variables; paths are relative to the working directory.
SIGUSR1 renews the certificate now; SIGTERM ends the process.
";

/// Reads the arguments.
///
/// # Errors
/// When they name no command.
pub fn parse(arguments: &[String]) -> Result<Command, UsageError> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    Ok(match arguments[..] {
        [] | ["serve"] => Command::Serve,
        ["env"] => Command::Print(variables()),
        ["version" | "--version" | "-V"] => Command::Print(version()),
        ["help" | "--help" | "-h"] => Command::Print(HELP.to_owned()),
        ["serve" | "env" | "version" | "help", extra, ..] | [extra, ..] => return Err(UsageError(extra.to_owned())),
    })
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
