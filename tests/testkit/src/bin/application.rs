//! What runs in pods of tests, chosen by the name under which it is started: `go-httpbin -host HOST -port PORT`,
//! `calls URL`, and `pause`, which does nothing.

use std::{net::IpAddr, path::Path, process::ExitCode, sync::Arc, time::Duration};

use testkit::{Failure, OrFail, http, httpbin::Httpbin};
use tokio::{
    net,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many calls `calls` makes at once, and how long it waits before the next: what happens to one then happens to many,
/// so that limits of retries that are open at a time would show.
const AT_ONCE: u64 = 16;
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match (name, &arguments[..]) {
        ("pause", []) => until_told(async { Ok(()) }),
        ("go-httpbin", ["-host", host, "-port", port]) => until_told(httpbin(host, port)),
        ("calls", [url]) => calls(url),
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

/// Calls until SIGTERM, many at once and then again, as a client ends that ends well: not before the calls that are on
/// their way are answered. Writes each failure, and at the end how many calls there were.
fn calls(url: &str) -> testkit::Result {
    let destination = Arc::new(destination(url)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail("start a runtime")?;
    runtime.block_on(async {
        let mut told = signal(SignalKind::terminate()).or_fail("listen for SIGTERM")?;
        let (mut made, mut failed) = (0, 0);
        while timeout(PAUSE, told.recv()).await.is_err() {
            let mut calls = JoinSet::new();
            for number in made + 1..=made + AT_ONCE {
                let destination = Arc::clone(&destination);
                calls.spawn(async move { destination.call().await.err().map(|problem| (number, problem)) });
            }
            made += AT_ONCE;
            for (number, problem) in calls.join_all().await.into_iter().flatten() {
                failed += 1;
                println!("call {number}: {problem}");
            }
        }
        println!("{made} calls, {failed} failed");
        Ok(())
    })
}

/// Where a call goes.
struct Destination {
    /// Whom to connect to.
    server: String,
    authority: String,
    /// What to ask for.
    target: String,
}

impl Destination {
    /// One call, over a connection of its own; what was wrong if it was not answered with 200.
    async fn call(&self) -> Result<(), String> {
        let call = async {
            let stream = net::TcpStream::connect(&self.server).await.or_fail(format!("connect to {}", self.server))?;
            http::get(stream, &self.authority, &self.target).await
        };
        match timeout(PATIENCE, call).await {
            Ok(Ok(answer)) if answer.status == 200 => Ok(()),
            Ok(Ok(answer)) => Err(format!("answered with {}: {}", answer.status, answer.text().trim())),
            Ok(Err(failure)) => Err(failure.what().to_owned()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }
}

/// Where calls of a URL go: to the proxy that `http_proxy` names, if it does.
fn destination(url: &str) -> Result<Destination, Failure> {
    let plain = |url: &str| url.strip_prefix("http://").map(str::to_owned);
    let rest = plain(url).ok_or_else(|| Failure::new(format!("{url} is no http:// URL")))?;
    let (authority, path) = rest.split_once('/').unwrap_or((&rest, ""));
    let proxy = std::env::var("http_proxy").ok().and_then(|proxy| plain(&proxy));
    let (server, target) = match &proxy {
        Some(proxy) => (proxy.as_str(), url.to_owned()),
        None => (authority, format!("/{path}")),
    };
    let server = if server.contains(':') { server.to_owned() } else { format!("{server}:80") };
    Ok(Destination { server, authority: authority.to_owned(), target })
}
