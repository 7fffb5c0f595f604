//! `sds-shim`: gives an Envoy sidecar its identity.
#![forbid(unsafe_code)]
// The house rules for what ships: no panic can be reached from outside, nothing is printed past the log, and what
// `.clippy.toml` lists is called only where a reason stands. Unit tests do as they like.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::disallowed_methods,
        clippy::too_many_lines
    )
)]

use std::{io::Write as _, os::unix::process::ExitStatusExt as _, process::ExitCode};

use locked::Inherited;
use sds_shim::{
    app::{self, AppError},
    cli,
    client::ClientError,
    config,
    supervise::LaunchError,
};

/// Tokens pass through buffers of every library: all of them lie in the locked arena, and keys in secret memory.
#[global_allocator]
static ALLOCATOR: locked::LockedAllocator = locked::LockedAllocator;

/// Exit codes: those of `sysexits.h`, and a shell's.
const NO: u8 = 1;
const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

fn main() -> ExitCode {
    match locked::harden_process() {
        Ok(inherited) => locked::on_arena_stack(|| command(inherited)),
        Err(error) => fail(EX_SOFTWARE, &error),
    }
}

fn command(inherited: Inherited) -> ExitCode {
    if let Err(error) = locked::adopt_openssl() {
        return fail(EX_SOFTWARE, &error);
    }
    let command = match cli::parse(config::arguments()) {
        Ok(command) => command,
        Err(error) => return fail(EX_USAGE, &error),
    };
    match app::run(command, inherited) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(ended)) => ExitCode::from(ended.code().or(ended.signal().map(|n| 128 + n)).unwrap_or(0) as u8),
        Err(error) => fail(code(&error), &error),
    }
}

fn code(error: &AppError) -> u8 {
    match error {
        AppError::Config(_) | AppError::Checked => EX_USAGE,
        AppError::Bind(_) | AppError::Client(ClientError::Unreachable { .. } | ClientError::Stranger(_)) => {
            EX_UNAVAILABLE
        }
        AppError::Client(_) => NO,
        AppError::Memory(_) => EX_OSERR,
        AppError::Launch(LaunchError::NotFound(_)) => NOT_FOUND,
        AppError::Launch(LaunchError::NotExecutable(..)) => NOT_EXECUTABLE,
        AppError::Launch(LaunchError::NoRoom(..)) | AppError::System(_) | AppError::Log(_) => EX_SOFTWARE,
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "sds-shim: {error}");
    ExitCode::from(code)
}
