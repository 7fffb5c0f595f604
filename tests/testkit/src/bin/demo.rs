//! `make demo`: plays the scene, prints what it shows, and fails when a line is not as promised. With the argument
//! `migration` or `control-plane` that is the scene of the target of that name.
//!
//! With `KEEP=1` the mesh stays up afterwards until Ctrl-C or SIGTERM.

use std::{io, process::ExitCode};

use testkit::{
    Failure, OrFail,
    scene::{self, Act, Options},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let start = std::time::Instant::now();
    match demonstrate().await {
        Ok(true) => {
            println!("demo: all as promised, in {:.1} s", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::from(130),
        Err(failure) => {
            eprintln!("demo: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the scene came to its end; `false` when a signal cut it short.
async fn demonstrate() -> Result<bool, Failure> {
    let mut signals = Signals::new().or_fail("handle signals")?;
    let act = match std::env::args().nth(1).as_deref() {
        None => Act::Acceptance,
        Some("migration") => Act::Migration,
        Some("control-plane") => Act::ControlPlane,
        Some(other) => {
            return Err(Failure::new(format!("there is no scene {other:?}, but migration and control-plane")));
        }
    };
    let options = Options { act, print: |line| println!("{line}"), keep_traces: true };
    let scene = tokio::select! {
        scene = scene::play(options) => scene?,
        // Dropping the scene ends its processes and removes its directory.
        () = signals.next() => return Ok(false),
    };
    if std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0") {
        println!("the mesh stays up; Ctrl-C ends it");
        for line in scene.instructions() {
            println!("  {line}");
        }
        signals.next().await;
    }
    scene.finish().await?;
    Ok(true)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
