//! The traffic of a real Envoy, which is the command, over crashes.

use std::{cell::Cell, convert::Infallible, fs, net::Ipv4Addr, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    confined::Confinement,
    development_ca::Fault,
    envoy::{self, ADMIN_SOCKET, Admin, Bootstrap, SdsTransport},
    fixture::{Site, plain_serial},
    httpbin::Httpbin,
    shim::{Shim, ShimBuilder},
    tls,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, interval, sleep},
};
use tonic::Code;

use super::{break_and_see, children, first_child, served};

const CLIENT: &str = "spiffe://cluster.local/ns/foo/sa/client";

/// Full handshakes with the command's own certificate, twenty a second; `count` says how many there were. Ends with the
/// first one that fails.
async fn shake_hands(port: u16, site: &Site, count: &Cell<usize>) -> Result<Infallible, Failure> {
    const EVERY: Duration = Duration::from_millis(50);
    let (client, mut ticks) = (site.issue(CLIENT), interval(EVERY));
    loop {
        ticks.tick().await;
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.or_fail("connect to Envoy")?;
        let mut stream = tls::connect(stream, &site.ca.root_pem(), Some(&client)).await?;
        // In TLS 1.3 it is the answer that tells whether Envoy has taken the client's certificate.
        stream.write_all(b"GET /ip HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.or_fail("ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.or_fail("read the answer")?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            return Err(Failure::new(format!("after {} handshakes: {answer:?}", count.get())));
        }
        count.set(count.get() + 1);
    }
}

/// Crashes the shim so often, each time after some more handshakes; after how long each time a new client was served.
async fn crash_often(shim: &mut Shim, crashes: usize, handshakes: &Cell<usize>) -> Result<Vec<Duration>, Failure> {
    let mut spans = Vec::new();
    for crash in 1..=crashes {
        let enough = || (handshakes.get() >= 10 * crash).then_some(());
        shim.until(&format!("{} handshakes", 10 * crash), enough).await?;
        let start = Instant::now();
        break_and_see(shim).await?;
        served(shim).await?;
        spans.push(start.elapsed());
    }
    Ok(spans)
}

/// An Envoy as the command of one process, which crashes so often; after how long each time a new client was served, and
/// how many handshakes there were. Where the process is closed to others, the CA is away meanwhile and is not asked.
async fn survive(confinement: Option<Confinement>, crashes: usize) -> Result<(Vec<Duration>, usize), Failure> {
    let (site, application) = (Site::new().await?, Httpbin::start().await?);
    let port = testkit::port::unshared().or_fail("find a port")?;
    let bootstrap = Bootstrap::new("sleep.foo", SdsTransport::EnvoyGrpc).port(port);
    let bootstrap = bootstrap.inbound(application.address(), &[CLIENT.to_owned()]).build();
    fs::write(site.workload.path().join("envoy.json"), bootstrap.to_string()).or_fail("configure Envoy")?;
    let program = envoy::program()?.display().to_string();
    let command = [&*program, "-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart"];
    let (shim, keeps) = (site.shim().may_crash().exec(&command), confinement.is_some());
    let mut pod = site.serve_with(confinement.into_iter().fold(shim, ShimBuilder::confined)).await?;
    let admin = Admin::at(&pod.site.workload.path().join(ADMIN_SOCKET));
    let start = Instant::now();
    while !admin.is_ready().await {
        assert!(start.elapsed() < PATIENCE, "Envoy is not ready");
        sleep(POLL).await;
    }
    let first = served(&mut pod.shim).await?;
    if keeps {
        pod.site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    }
    let children = children(pod.shim.pid())?;
    let count = Cell::new(0);
    let spans = tokio::select! {
        served = crash_often(&mut pod.shim, crashes, &count) => served?,
        failed = shake_hands(port, &pod.site, &count) => match failed? {},
    };
    assert_eq!(self::children(pod.shim.pid())?, children);
    let calls = pod.site.ca.calls().len();
    assert!(if keeps { calls == 1 } else { calls <= 1 + crashes }, "{calls} calls in {crashes} crashes");
    // Envoy has what the last successor serves.
    let last = served(&mut pod.shim).await?;
    assert_eq!(last == first, keeps);
    let start = Instant::now();
    while !admin.certificates().await?.iter().any(|certificate| certificate.serial == plain_serial(&last)) {
        assert!(start.elapsed() < PATIENCE, "Envoy has another certificate than {last}");
        sleep(POLL).await;
    }
    kill(Pid::from_raw(first_child(pod.shim.pid())?.cast_signed()), Signal::SIGKILL).or_fail("kill Envoy")?;
    assert_eq!(pod.shim.wait_exit().await?.code(), Some(128 + Signal::SIGKILL as i32));
    assert_eq!(pod.shim.log().count("command started"), 1);
    Ok((spans, count.get()))
}

/// With all settings as they are by default. The third crash of a process within a minute would cost the key.
#[tokio::test]
async fn an_envoy_as_the_command_serves_through_twenty_crashes_without_its_ca() -> testkit::Result {
    let (mut spans, mut handshakes) = (Vec::new(), 0);
    for _ in 0..10 {
        let (more, count) = survive(Some(Confinement::CLOSED), 2).await?;
        spans.extend(more);
        handshakes += count;
    }
    spans.sort();
    println!("{} crashes, {handshakes} handshakes, 0 failed, no call to the CA", spans.len());
    println!("served again after {:?} (median), {:?} at the most", spans[10], spans[19]);
    Ok(())
}

/// Where the key is not handed on, Envoy has what it needs all the same.
#[tokio::test]
async fn an_envoy_as_the_command_serves_through_crashes_that_cost_the_key() -> testkit::Result {
    let (_, handshakes) = survive(None, 7).await?;
    println!("7 crashes, {handshakes} handshakes, 0 failed");
    Ok(())
}
