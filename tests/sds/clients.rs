//! Clients that come, go, or are none at all: nobody else notices.

use std::time::Duration;

use testkit::{
    Failure, OrFail, PATIENCE,
    fixture::{Pod, QUIET, names, serial},
    sds::{self, SdsClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use tonic::Code;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Sends bytes that are no HTTP/2 and expects the connection to be closed.
async fn expect_hang_up(pod: &Pod, bytes: &[u8]) -> testkit::Result {
    let mut raw = sds::raw(pod.shim.socket()).await?;
    // The server may hang up before it has read all of it.
    let _ = raw.write_all(bytes).await;
    closed(&mut raw).await
}

async fn closed(raw: &mut UnixStream) -> testkit::Result {
    let mut answer = Vec::new();
    // An end in the middle of unread bytes arrives as a reset.
    let read = timeout(PATIENCE, raw.read_to_end(&mut answer)).await.or_fail("wait for the hang-up")?;
    match read {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(Failure::new(format!("read from the socket: {error}"))),
    }
}

#[tokio::test]
async fn non_http2_bytes_close_their_connection_only() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let zeros = vec![0; 100_000];
    let bad_frame = [PREFACE, EMPTY_SETTINGS, &[0xff; 64]].concat();
    let http1 = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on, to the length of the preface and beyond";
    for bytes in [&zeros[..], &bad_frame, http1, tls, b"\xff\xfe\xfd\r\n\r\n garbage of some length"] {
        expect_hang_up(&pod, bytes).await?;
    }
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn half_open_connections_disturb_nobody() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let mut half_open = Vec::new();
    for sent in [&b""[..], b"PRI", PREFACE, &[PREFACE, EMPTY_SETTINGS].concat(), &[PREFACE, b"\0\0\x05\x01"].concat()] {
        let mut raw = sds::raw(pod.shim.socket()).await?;
        raw.write_all(sent).await.or_fail("write a part")?;
        half_open.push(raw);
    }
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    let newcomer = SdsClient::connect(pod.shim.socket()).await.or_fail("connect beside them")?;
    assert!(newcomer.fetch(sds::request(&["default"])).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_an_orderly_end() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, _) = pod.ask(&["default"]).await?;
    stream.finish();
    assert_eq!(stream.expect_closed().await?.code(), Code::Ok);
    let (mut stream, _) = pod.ask_delta(&["default"]).await?;
    stream.finish();
    assert_eq!(stream.expect_closed().await?.code(), Code::Ok);
    Ok(())
}

#[tokio::test]
async fn clients_that_vanish_leave_room_for_others() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    // More than may be open at a time.
    for _ in 0..300 {
        let client = SdsClient::connect(pod.shim.socket()).await.or_fail("connect")?;
        let mut stream = client.stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await?;
    }
    for _ in 0..300 {
        pod.ask(&["default"]).await?;
    }
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    assert_eq!(pod.site.ca.calls().len(), 2, "clients cost no calls to the CA");
    Ok(())
}

#[tokio::test]
async fn a_client_that_reconnects_gets_what_it_missed() -> testkit::Result {
    let pod = Pod::new().await?;
    let (stream, before) = pod.ask(&["default"]).await?;
    drop(stream);
    pod.rotate_and_see().await?;
    let client = SdsClient::connect(pod.shim.socket()).await.or_fail("connect again")?;
    let mut stream = client.stream();
    stream.send(sds::ack(&before, &["default"]));
    assert_ne!(serial(&stream.recv().await?)?, serial(&before)?);
    Ok(())
}

#[tokio::test]
async fn a_hundred_streams_of_one_client_all_get_the_rotation_for_one_call_to_the_ca() -> testkit::Result {
    let pod = Pod::new().await?;
    expect_rotation(&pod, std::slice::from_ref(&pod.client), 100).await
}

#[tokio::test]
async fn a_hundred_streams_of_ten_clients_all_get_the_rotation_for_one_call_to_the_ca() -> testkit::Result {
    let pod = Pod::new().await?;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(SdsClient::connect(pod.shim.socket()).await.or_fail("connect")?);
    }
    expect_rotation(&pod, &clients, 10).await
}

/// Opens streams, acknowledges on them, and expects one rotation on all of them.
async fn expect_rotation(pod: &Pod, clients: &[SdsClient], streams_each: usize) -> testkit::Result {
    let mut streams = Vec::new();
    for client in clients {
        for number in 0..streams_each {
            let mut stream = client.stream();
            stream.send(sds::request(if number % 2 == 0 { &["default"] } else { &["default", "ROOTCA"] }));
            let answer = stream.recv().await?;
            stream.send(sds::ack(&answer, &["default", "ROOTCA"]));
            if number % 2 == 0 {
                assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
            }
            streams.push(stream);
        }
    }
    pod.rotate()?;
    let expected = serial(&streams[0].recv().await?)?;
    for stream in &mut streams[1..] {
        assert_eq!(serial(&stream.recv().await?)?, expected);
    }
    assert_eq!(pod.site.ca.calls().len(), 2);
    Ok(())
}

#[tokio::test]
async fn connections_over_the_limit_are_rejected_and_others_unaffected() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let mut idle = Vec::new();
    let refused = loop {
        assert!(idle.len() < 10_000, "there is no limit");
        let mut raw = sds::raw(pod.shim.socket()).await?;
        if raw.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.is_err() {
            break raw;
        }
        // The server speaks first on a connection that it takes.
        match timeout(PATIENCE, raw.read(&mut [0; 9])).await.or_fail("wait for the SETTINGS")? {
            Ok(read) if read > 0 => idle.push(raw),
            _ => break raw,
        }
    };
    drop(refused);
    pod.shim.wait_for_log("SDS connection limit reached").await?;
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    idle.clear();
    // The ends of the idle ones are seen one after the other.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let client = SdsClient::connect(pod.shim.socket()).await;
        if let Ok(client) = client
            && client.fetch(sds::request(&["default"])).await.is_ok()
        {
            return Ok(());
        }
        assert!(tokio::time::Instant::now() < deadline, "there is no room again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_never_reads_delays_nobody() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let mut deaf = sds::raw(pod.shim.socket()).await?;
    deaf.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.or_fail("write the preface")?;
    // PINGs, each of which must be answered: nobody takes the answers, so at some point no more are accepted.
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(1000);
    let flood = async { while deaf.write_all(&ping).await.is_ok() {} };
    let _ = timeout(QUIET * 2, flood).await;
    for _ in 0..3 {
        pod.rotate()?;
        assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    }
    Ok(())
}
