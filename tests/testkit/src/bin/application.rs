//! What runs in pods of tests, chosen by the name under which it is started: `go-httpbin -host HOST -port PORT`, and
//! `pause`, which does nothing.

use std::{net::IpAddr, path::Path, process::ExitCode};

use testkit::{Failure, OrFail, httpbin::Httpbin};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match (name, &arguments[..]) {
        ("pause", []) => until_told(async { Ok(()) }),
        ("go-httpbin", ["-host", host, "-port", port]) => until_told(httpbin(host, port)),
        _ => Err(Failure::new(format!("{name} does not take {arguments:?}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{name}: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Holds what `start` makes until SIGTERM.
fn until_told<T>(start: impl Future<Output = Result<T, Failure>>) -> testkit::Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail("start a runtime")?;
    runtime.block_on(async {
        let mut told = signal(SignalKind::terminate()).or_fail("listen for SIGTERM")?;
        let _made = start.await?;
        told.recv().await;
        Ok(())
    })
}

async fn httpbin(host: &str, port: &str) -> Result<Httpbin, Failure> {
    let host: IpAddr = host.parse().or_fail(format!("read {host:?}"))?;
    Httpbin::start_at((host, port.parse().or_fail(format!("read {port:?}"))?).into()).await
}
