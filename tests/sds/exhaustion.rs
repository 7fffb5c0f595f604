//! Clients that take all they can get: they are refused or bounded, the process lives, and others are served.

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    confined::{Confinement, MEMLOCK},
    fixture::{Logged, Site},
    sds::{self, SdsClient, SdsStream},
};

/// How often each kind of greed is tried.
const ROUNDS: usize = 20;

/// A request that is valid, and as large as names can make it: 60 KB, which a stream would have to remember.
fn greedy() -> Vec<String> {
    (0..60).map(|number| format!("file-root:/{number}/{}", "x".repeat(1000))).collect()
}

/// Opens what it can, asks for as much as it can, and reads nothing.
async fn rush(shim: &Logged) -> Result<Vec<(SdsClient, Vec<SdsStream>)>, Failure> {
    let names = greedy();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut clients = Vec::new();
    for _ in 0..20 {
        // Over the limit a connection is refused.
        let Ok(client) = SdsClient::connect(shim.socket()).await else { continue };
        let mut streams = Vec::new();
        for _ in 0..20 {
            let stream = client.stream();
            stream.send(sds::request(&names));
            streams.push(stream);
        }
        clients.push((client, streams));
    }
    Ok(clients)
}

#[tokio::test]
async fn greedy_clients_fill_no_memory_and_stop_nobody() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().confined(Confinement::default()).start()?);
    let client = shim.connect().await?;
    let mut healthy = client.stream();
    healthy.send(sds::request(&["default"]));
    let mut last = healthy.recv().await?;
    for _ in 0..ROUNDS {
        let crowd = rush(&shim).await?;
        // While the crowd is there, a renewal finds room, and the one who was there before gets it.
        healthy.send(sds::ack(&last, &["default"]));
        shim.signal(Signal::SIGUSR1)?;
        last = healthy.recv().await?;
        drop(crowd);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("the shim lives")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).expect("the kernel tells it");
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    Ok(())
}
