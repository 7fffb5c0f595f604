//! The command line of the development CA; never for production.
#![forbid(unsafe_code)]

mod arguments;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use arguments::{Command, USAGE};
use development_ca::{CaOptions, DevelopmentCa, ProjectedVolume, TokenRequest, state};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let result = match Command::parse(std::env::args().skip(1)) {
        Err(mistake) => {
            eprintln!("development-ca: {mistake}\n\n{USAGE}");
            return ExitCode::from(64);
        }
        Ok(Command::Help) => io::stdout().write_all(USAGE.as_bytes()),
        Ok(Command::Serve { dir, options }) => serve(&dir, *options),
        Ok(Command::Token { dir, request, output }) => token(&dir, &request, output.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("development-ca: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(dir: &Path, options: CaOptions) -> io::Result<()> {
    // Before the line that says it listens: whoever reads that may send a signal at once.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (pki, tokens) = state::open_or_create(dir)?;
    let listen = options.listen;
    let ca = DevelopmentCa::start(Arc::new(pki), Arc::new(tokens), options);
    let ca = ca.await.map_err(|error| io::Error::new(error.kind(), format!("{listen}: {error}")))?;
    writeln!(io::stdout(), "development CA, never for production: listening on {}", ca.address())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn token(dir: &Path, request: &TokenRequest, output: Option<&Path>) -> io::Result<()> {
    let token = state::open_tokens(dir)?.mint(request);
    match output {
        Some(output) => ProjectedVolume::create(output, &[("istio-token", &token)]).map(drop),
        None => writeln!(io::stdout(), "{token}"),
    }
}
