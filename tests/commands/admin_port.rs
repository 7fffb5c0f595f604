//! The admin endpoints on a TCP port, which every container of the pod reaches, and every page in a browser beside it.

use std::{net::TcpListener, time::Duration};

use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    fixture::{Open, Site},
    http::{self, Answer},
    port,
    shim::Shim,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// How long kubelet waits for the answer to a probe, by default.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// A request that lacks its end.
const SLOW: &[u8] = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n";

/// A shim that serves its admin endpoints on a port, and does so now.
async fn on_a_port(scene: &Site) -> Result<(Shim, u16), Failure> {
    let port = port::unshared().or_fail("find a port")?;
    let shim = scene.shim().env("SDS_SHIM_ADMIN", format!("127.0.0.1:{port}")).start()?;
    shim.wait_for_log("serving health, metrics and status").await?;
    Ok((shim, port))
}

async fn connect(port: u16) -> Result<TcpStream, Failure> {
    TcpStream::connect(("127.0.0.1", port)).await.or_fail("connect to the admin port")
}

/// As kubelet asks.
async fn probe(port: u16) -> Result<Answer, Failure> {
    let asked = async { http::get(connect(port).await?, &format!("127.0.0.1:{port}"), "/livez").await };
    timeout(PROBE_WITHIN, asked).await.or_fail("probe within a second")?
}

/// Somebody who says this much and no more, and comes again as often as he is shown out.
fn nuisance(port: u16, said: &'static [u8]) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await
                && stream.write_all(said).await.is_ok()
            {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            sleep(POLL).await;
        }
    })
}

/// Probes for a while beside these nuisances; all must be answered.
async fn probes_beside(said: &'static [u8], count: usize) -> testkit::Result {
    let scene = Site::new().await?;
    let (shim, port) = on_a_port(&scene).await?;
    let nuisances: Vec<_> = (0..count).map(|_| nuisance(port, said)).collect();
    // They are all there.
    sleep(Duration::from_millis(500)).await;
    let mut longest = Duration::ZERO;
    for number in 0..40 {
        let began = Instant::now();
        let answer = probe(port).await.map_err(|error| shim.failure(format!("probe {number}: {error}")))?;
        assert_eq!(answer.status, 200);
        longest = longest.max(began.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    println!("{count} nuisances, the longest probe took {longest:?}");
    nuisances.iter().for_each(JoinHandle::abort);
    Ok(())
}

#[tokio::test]
async fn slow_clients_keep_no_probe_out() -> testkit::Result {
    probes_beside(SLOW, 4).await?;
    probes_beside(SLOW, 64).await
}

#[tokio::test]
async fn silent_clients_keep_no_probe_out() -> testkit::Result {
    probes_beside(b"", 64).await
}

#[tokio::test]
async fn a_request_in_drops_is_not_waited_for() -> testkit::Result {
    let scene = Site::new().await?;
    let (_shim, port) = on_a_port(&scene).await?;
    let (mut reading, mut writing) = connect(port).await?.into_split();
    let began = Instant::now();
    let drops = tokio::spawn(async move {
        while writing.write_all(b"G").await.is_ok() {
            sleep(Duration::from_millis(200)).await;
        }
    });
    let mut answer = Vec::new();
    // It is closed with bytes of ours unread, so possibly by a reset.
    let _ = timeout(PATIENCE, reading.read_to_end(&mut answer)).await.or_fail("wait for the end")?;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drops.abort();
    Ok(())
}

#[tokio::test]
async fn a_dns_rebinding_site_reads_nothing() -> testkit::Result {
    let scene = Site::new().await?;
    let (_shim, port) = on_a_port(&scene).await?;
    for host in ["rebound.example".to_owned(), format!("rebound.example:{port}"), "127.0.0.1.example".to_owned()] {
        for path in ["/status", "/status/row", "/metrics", "/readyz"] {
            let answer = http::get(connect(port).await?, &host, path).await?;
            assert_eq!(answer.status, 421, "{host}: {}", answer.text());
            let text = answer.text();
            assert!(text.contains("Host") && !text.contains("spiffe") && text.lines().count() == 1, "{text}");
        }
    }
    let own = nix::unistd::gethostname().or_fail("learn our name")?.to_string_lossy().into_owned();
    // The pod's address as kubelet and Prometheus have it, and names of this machine.
    for host in [format!("127.0.0.1:{port}"), "10.1.2.3:15022".to_owned(), "[fd00::7]:15022".to_owned(), own] {
        assert_eq!(http::get(connect(port).await?, &host, "/livez").await?.status, 200, "{host}");
    }
    assert_eq!(http::get(connect(port).await?, "localhost", "/livez").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_occupied_port_is_reported_and_taken_once_free() -> testkit::Result {
    let scene = Site::new().await?;
    let port = port::unshared().or_fail("find a port")?;
    let squatter = TcpListener::bind(("127.0.0.1", port)).or_fail("take the port")?;
    let mut shim = scene.shim().env("SDS_SHIM_ADMIN", format!("127.0.0.1:{port}")).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let health = async || {
        let mut command = scene.shim().arg("health").start()?;
        let code = command.wait_exit().await?.code();
        Ok::<_, Failure>((code, command.log().lines().join("\n")))
    };
    let (code, told) = health().await?;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("ready\n") && told.contains(&format!("127.0.0.1:{port}")), "{told}");
    assert!(told.contains("Address already in use") && told.contains("retrying"), "{told}");
    let line = shim.wait_for_log("CANNOT serve health").await?;
    assert!(line.contains("retrying"), "{line}");
    drop(squatter);
    shim.wait_for_log("serving health, metrics and status").await?;
    assert_eq!(probe(port).await?.status, 200);
    assert_eq!(health().await?, (Some(0), "ready".to_owned()));
    assert_eq!(shim.log().count("CANNOT serve health"), 1);
    Ok(())
}
