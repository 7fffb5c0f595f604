//! What reaches connections that are open when what they were verified with changes (`SDS_SHIM_ON_CHANGE`).

use std::net::Ipv4Addr;

use testkit::{
    Failure, OrFail,
    development_ca::{Issued, Pki},
    fixture::{Site, renew, write},
    http::Connection,
    mtls_server::{MtlsServer, PEER, peer},
    tls,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
};

/// Envoy's administration interface, from the shim's working directory, which is Envoy's as well.
const DRAIN: &str = "unix:./admin.sock:/drain_listeners?graceful&skip_exit";

/// A connection that is kept.
async fn connect(gate: &MtlsServer, peer: &Issued) -> Result<Connection, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.port())).await.or_fail("connect")?;
    Connection::new(tls::connect(stream, &gate.scene.pki.root_pem(), Some(peer)).await?).await
}

#[tokio::test]
async fn the_open_connection_of_a_revoked_peer_ends() -> testkit::Result {
    for action in [None, Some(DRAIN)] {
        let edit = |shim: testkit::shim::ShimBuilder| match action {
            Some(action) => shim.env("SDS_SHIM_ON_CHANGE", action),
            None => shim,
        };
        let gate = MtlsServer::start(Site::new().await?, &[PEER], edit).await?;
        let (revoked, other) = (peer(&gate.scene.pki), peer(&gate.scene.pki));
        let mut open = connect(&gate, &revoked).await?;
        assert_eq!(open.get("httpbin", "/ip").await?.status, 200);
        write(&gate.scene.lists()?, &gate.scene.pki.crl(&[&revoked], 600))?;
        gate.until("the revoked peer is refused", || async { Ok(!gate.lets_in(&revoked).await?) }).await?;
        if action.is_none() {
            for _ in 0..3 {
                assert_eq!(open.get("httpbin", "/ip").await?.status, 200, "a connection was verified when it was made");
            }
            continue;
        }
        gate.shim.wait_for_log("revocation lists changed: POST unix:./admin.sock:/drain_listeners").await?;
        // One more answer may tell that it is the last one.
        let _ = open.get("httpbin", "/ip").await;
        assert!(open.get("httpbin", "/ip").await.is_err(), "the connection is open");
        assert!(!gate.lets_in(&revoked).await?);
        for _ in 0..3 {
            assert!(gate.lets_in(&other).await?, "the listeners have been closed");
        }
    }
    Ok(())
}

/// One answer of an administration interface; what was asked.
async fn answer(listener: &UnixListener, status: &str) -> Result<String, Failure> {
    let (mut stream, _) = listener.accept().await.or_fail("accept")?;
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.or_fail("read the request")?;
        asked.push(byte);
    }
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.or_fail("answer")?;
    String::from_utf8(asked).or_fail("read the request")
}

#[tokio::test]
async fn a_failed_action_is_reported_once_and_retried_and_renewals_trigger_none() -> testkit::Result {
    let scene = Site::new().await?;
    let socket = scene.workload.path().join("envoy.sock");
    let mut shim = scene.shim().env("SDS_SHIM_ON_CHANGE", "unix:./envoy.sock:/x?a=b").start()?;
    let mut stream = shim.connect().await?.stream();
    stream.send(testkit::sds::request(&["default"]));
    stream.recv().await?;
    renew(&shim)?;
    stream.recv().await?;
    let metrics = shim.admin("/metrics").await?.text();
    assert!(metrics.contains(r#"sds_shim_on_change_total{outcome="success"} 0"#), "{metrics}");
    assert!(metrics.contains(r#"sds_shim_on_change_total{outcome="failure"} 0"#), "{metrics}");

    write(&scene.lists()?, &scene.pki.crl(&[], 600))?;
    let line = shim.wait_for_log("POST unix:./envoy.sock:/x?a=b failed").await?;
    assert!(line.contains("WARN") && line.contains("revocation lists changed, but"), "{line}");
    assert!(line.contains("No such file"), "{line}");
    let status = shim.admin("/status").await?.text();
    assert!(status.contains(r#""on_change":{"done":0"#), "{status}");
    let listener = UnixListener::bind(&socket).or_fail("bind")?;
    let _ = answer(&listener, "503 Service Unavailable").await?;
    let asked = answer(&listener, "200 OK").await?;
    assert!(asked.starts_with("POST /x?a=b HTTP/1.1\r\n") && asked.contains("content-length: 0"), "{asked}");
    shim.wait_for_log("revocation lists changed: POST unix:./envoy.sock:/x?a=b, after").await?;
    let metrics = shim.admin("/metrics").await?.text();
    assert!(metrics.contains(r#"sds_shim_on_change_total{outcome="success"} 1"#), "{metrics}");
    assert_eq!(shim.log().count("POST unix:./envoy.sock:/x?a=b failed:"), 1);

    // Further ones are done at once: another root beside the first.
    scene.write_root(&(scene.pki.root_pem() + &Pki::new("other").root_pem()))?;
    answer(&listener, "200 OK").await?;
    shim.wait_for_log("trust anchors changed: POST unix:./envoy.sock:/x?a=b").await?;
    Ok(())
}

#[tokio::test]
async fn a_command_gets_a_signal() -> testkit::Result {
    // Not SIGHUP, which whoever runs tests under nohup ignores, and so a shell that they start cannot trap.
    let scene = Site::new().await?;
    let script = "trap 'echo got USR2' USR2; echo ready; while :; do sleep 0.02; done";
    let mut shim = scene.shim().env("SDS_SHIM_ON_CHANGE", "SIGUSR2").exec(&["sh", "-c", script]).start()?;
    let mut stream = shim.connect().await?.stream();
    stream.send(testkit::sds::request(&["default"]));
    stream.recv().await?;
    shim.wait_for_log("ready").await?;
    write(&scene.lists()?, &scene.pki.crl(&[], 600))?;
    shim.wait_for_log("sending SIGUSR2 to the command").await?;
    shim.wait_for_log("got USR2").await?;
    // With it ends the command.
    shim.terminate().await?;
    Ok(())
}

#[tokio::test]
async fn a_signal_without_a_command_is_a_mistake() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_ON_CHANGE", "SIGHUP").start()?;
    assert_eq!(shim.wait_exit().await?.code(), Some(64));
    let told = "SDS_SHIM_ON_CHANGE: a signal needs a command to receive it: start the shim with `sds-shim exec`";
    assert!(shim.log().contains(told), "{:?}", shim.log().lines());
    Ok(())
}
