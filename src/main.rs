//! `sds-shim`: gives an Envoy sidecar its identity.

use std::{io::Write as _, process::ExitCode};

use sds_shim::{
    app::{self, AppError},
    cli::{self, Command},
    config::{self, Config, ProcessEnv},
    log, memory,
};

/// Keys and tokens pass through buffers of every library: all of them lie in the arena.
#[global_allocator]
static ALLOCATOR: locked::LockedAllocator = locked::LockedAllocator;

/// Exit codes (`sysexits.h`).
const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;

fn main() -> ExitCode {
    if let Err(error) = locked::harden_process() {
        return fail(EX_SOFTWARE, &error);
    }
    locked::on_arena_stack(command)
}

fn command() -> ExitCode {
    if let Err(error) = locked::adopt_openssl() {
        return fail(EX_SOFTWARE, &error);
    }
    match cli::parse(&config::arguments()) {
        Ok(Command::Serve) => serve(),
        Ok(Command::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EX_SOFTWARE, &error),
        },
        Err(error) => fail(EX_USAGE, &error),
    }
}

fn serve() -> ExitCode {
    let config = match Config::from_env(&ProcessEnv::capture()) {
        Ok(config) => config,
        Err(mistakes) => {
            let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            return fail(EX_USAGE, &format!("the configuration has mistakes:\n  {}", lines.join("\n  ")));
        }
    };
    if let Err(error) = log::start(config.log) {
        return fail(EX_SOFTWARE, &error);
    }
    if let Err(error) = memory::protect(&config.memory) {
        return fail(EX_OSERR, &error);
    }
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ AppError::Bind(_)) => fail(EX_UNAVAILABLE, &error),
        Err(error @ AppError::System(_)) => fail(EX_SOFTWARE, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "sds-shim: {error}");
    ExitCode::from(code)
}
