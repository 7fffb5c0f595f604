//! The applications of pods in tests, chosen by the name under which it is started: `go-httpbin -host HOST -port PORT`,
//! `sleep infinity`, `curl --include URL`, `env`, `cp FROM TO`, and `pause`, which does nothing.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use testkit::{Failure, OrFail, httpbin::Httpbin};
use tokio::signal::unix::{SignalKind, signal};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match (name, &arguments[..]) {
        ("pause", []) => until_told(async { Ok(()) }),
        ("go-httpbin", ["-host", host, "-port", port]) => until_told(httpbin(host, port)),
        ("sleep", ["infinity"]) => loop {
            // As the real one, it has nothing to say to SIGTERM, which a container's first process then does not get.
            std::thread::park();
        },
        ("curl", ["--include", url]) => curl(url),
        ("env", []) => {
            std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
            Ok(())
        }
        ("cp", [from, to]) => std::fs::copy(from, to).map(drop).or_fail(format!("copy {from} to {to}")),
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

/// Writes the whole answer; through the proxy that `http_proxy` names, if it does.
fn curl(url: &str) -> testkit::Result {
    let plain = |url: &str| url.strip_prefix("http://").map(str::to_owned);
    let rest = plain(url).ok_or_else(|| Failure::new(format!("{url} is no http:// URL")))?;
    let (authority, path) = rest.split_once('/').unwrap_or((&rest, ""));
    let proxy = std::env::var("http_proxy").ok().and_then(|proxy| plain(&proxy));
    let (server, target) = match &proxy {
        Some(proxy) => (proxy.as_str(), url.to_owned()),
        None => (authority, format!("/{path}")),
    };
    let server = if server.contains(':') { server.to_owned() } else { format!("{server}:80") };
    let mut stream = TcpStream::connect(&server).or_fail(format!("connect to {server}"))?;
    stream.set_read_timeout(Some(PATIENCE)).or_fail("set a time")?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).or_fail("send the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).or_fail("read the answer")?;
    std::io::stdout().write_all(&answer).or_fail("write the answer")
}
