//! In which order a renewal does what it has to do, as the kernel sees it.

use std::fs;

use testkit::{
    Failure, OrFail,
    fixture::{Logged, Site},
    sds,
};

/// What goes to Envoy, to the log and to the CA, in the order in which the kernel was asked. strace writes the first bytes.
async fn writes_of_a_renewal() -> Result<Vec<String>, Failure> {
    let site = Site::new().await?;
    let trace = site.workload.path().join("trace");
    let calls = ["-e", "trace=write,writev,sendto,close,shutdown", "-e", "signal=none", "-s", "512", "-qq"];
    let file = trace.display().to_string();
    let launcher = [&["strace", "-D", "-f", "-o", &file][..], &calls].concat();
    let mut shim = Logged(site.shim().through(&launcher).start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let answer = stream.recv().await?;
    stream.send(sds::ack(&answer, &["default"]));
    shim.wait_for_log("certificate issued").await?;
    let mark = shim.log().mark();
    shim.signal(nix::sys::signal::Signal::SIGUSR1)?;
    stream.recv().await?;
    shim.wait_for_log_after(mark, "certificate issued").await?;
    shim.terminate().await?;
    let text = fs::read_to_string(&trace).or_fail("read the trace")?;
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let begin = lines.iter().position(|line| line.contains("renewal requested by signal"));
    let end = lines.iter().position(|line| line.contains("received SIGTERM"));
    match (begin, end) {
        (Some(begin), Some(end)) if begin < end => Ok(lines[begin..end].to_vec()),
        _ => Err(Failure::new(format!("no renewal in {text}"))),
    }
}

/// Envoy does not wait while the certificate is logged. It waits for the end of the connection to the CA, on which the
/// key is in use that retires: `random_stops` would find it.
#[tokio::test]
async fn envoy_has_the_certificate_before_it_is_logged() -> testkit::Result {
    let lines = writes_of_a_renewal().await?;
    let first = |what: &str| lines.iter().position(|line| line.contains(what));
    let to_envoy = first("type.googleapis.com/envoy.");
    let (logged, closed) = (first("certificate issued"), first("shutdown("));
    let lines = lines.join("\n");
    assert!(to_envoy.is_some() && to_envoy < logged, "Envoy: {to_envoy:?}, log: {logged:?} of\n{lines}");
    assert!(closed.is_some() && closed < to_envoy, "Envoy: {to_envoy:?}, the connection's end: {closed:?} of\n{lines}");
    Ok(())
}

/// What the CA gets is a part of the handshake, another one, and the request: its headers with the token, its content and what
/// HTTP/2 says before them are together. What follows are a few bytes each, for acknowledgements and the end.
#[tokio::test]
async fn the_ca_gets_a_request_in_one_piece() -> testkit::Result {
    const FEW: usize = 100;
    let lines = writes_of_a_renewal().await?;
    let sizes: Vec<usize> = lines
        .iter()
        .filter(|line| line.contains(" sendto("))
        .filter_map(|line| line.rsplit_once(" = ").and_then(|(_, size)| size.parse().ok()))
        .collect();
    let [_, _, request, rest @ ..] = &sizes[..] else {
        return Err(Failure::new(format!("{} parts of\n{}", sizes.len(), lines.join("\n"))));
    };
    assert!(*request > 1000 && rest.iter().all(|size| *size < FEW), "{sizes:?} of\n{}", lines.join("\n"));
    Ok(())
}

/// Whoever has got a certificate may want the next one at once: that is not taken for part of what has just ended.
#[tokio::test]
async fn a_renewal_that_is_asked_for_on_the_certificates_arrival_is_made() -> testkit::Result {
    const RENEWALS: usize = 20;
    let site = Site::new().await?;
    // Each look for events comes late enough for the signal to be among them.
    let calls = "trace=?epoll_wait,?epoll_pwait";
    let delay = "inject=?epoll_wait,?epoll_pwait:delay_enter=5000";
    let launcher = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-e", calls, "-e", delay];
    let mut shim = Logged(site.shim().through(&launcher).start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    for renewal in 0..RENEWALS {
        let answer = stream.recv().await.map_err(|failure| failure.context(format!("renewal {renewal}")))?;
        shim.signal(nix::sys::signal::Signal::SIGUSR1)?;
        stream.send(sds::ack(&answer, &["default"]));
    }
    stream.recv().await?;
    shim.terminate().await?;
    Ok(())
}
