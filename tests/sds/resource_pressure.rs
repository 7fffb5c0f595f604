//! Hardships from outside that once ended or froze the process: a log that nobody reads, clients that do not read,
//! signals that come early, trust anchors in masses, a user without inotify instances.

use std::{fs::OpenOptions, io::Read};

use nix::sys::{signal::Signal, stat::Mode};
use testkit::{
    Failure, OrFail, PATIENCE,
    confined::{Confinement, UID, own},
    development_ca::Pki,
    fixture::{Logged, Pod, Site, serial},
    sds::{self, SdsClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout},
};

#[tokio::test]
async fn an_unread_log_blocks_nothing_and_loses_only_lines() -> testkit::Result {
    const ROTATIONS: usize = 400;
    let site = Site::new().await?;
    let fifo = site.workload.path().join("log");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).or_fail("make a pipe")?;
    // Open for both, so that it never has to wait for the other side; read by nobody until the end.
    let mut unread = OpenOptions::new().read(true).write(true).open(&fifo).or_fail("open the pipe")?;
    let launcher = ["sh", "-c", "exec \"$0\" \"$@\" 2>log"];
    let mut shim = site.shim().through(&launcher).env("SDS_SHIM_LOG", "debug").start()?;
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let mut last = stream.recv().await?;
    for _ in 0..ROTATIONS {
        stream.send(sds::ack(&last, &["default"]));
        shim.signal(Signal::SIGUSR1)?;
        last = stream.recv().await?;
    }
    assert_eq!(shim.admin("/livez").await?.status, 200);
    // Once there is room again, the log says that it has a gap.
    let mut read = vec![0; 1 << 20];
    let mut log = String::new();
    let deadline = Instant::now() + PATIENCE;
    while !log.contains("log lines before the last one: standard error was not being read") {
        assert!(Instant::now() < deadline, "the gap is not told");
        let count = unread.read(&mut read).or_fail("read the log")?;
        log.push_str(&String::from_utf8_lossy(&read[..count]));
        shim.signal(Signal::SIGUSR1)?;
        stream.recv().await?;
    }
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// Frames by hand (RFC 9113): preface, SETTINGS with this window for streams, and a `StreamSecrets` for `default`.
async fn by_hand(socket: &std::path::Path, window: u32) -> Result<UnixStream, Failure> {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    const END_HEADERS: u8 = 4;
    fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len() as u16;
        [&[0, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, stream], content].concat()
    }
    let window = [&[0, 4][..], &window.to_be_bytes()].concat();
    // HPACK (RFC 7541): POST and http from the static table, the rest spelt out.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.extend([&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat());
    }
    let message = prost::Message::encode_to_vec(&sds::request(&["default"]));
    let body = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let mut stream = sds::raw(socket).await?;
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &window),
        frame(HEADERS, END_HEADERS, 1, &headers),
        frame(DATA, 0, 1, &body),
    ];
    stream.write_all(&sent.concat()).await.or_fail("write a request")?;
    Ok(stream)
}

/// Reads until the other side closes.
async fn closed(stream: &mut UnixStream) -> testkit::Result {
    let mut all = Vec::new();
    // A reset is an end as well.
    drop(timeout(PATIENCE, stream.read_to_end(&mut all)).await.or_fail("wait for the end of the connection")?);
    Ok(())
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected_alone() -> testkit::Result {
    let mut pod = Pod::new().await?;
    // Room for some answers, and never more: the retired keys of the rest would stay with us.
    let mut deaf = by_hand(pod.shim.socket(), 16_384).await?;
    let (mut honest, mut last) = pod.ask(&["default"]).await?;
    for _ in 0..10 {
        honest.send(sds::ack(&last, &["default"]));
        pod.rotate()?;
        last = honest.recv().await?;
    }
    pod.shim.wait_for_log("its client does not read").await?;
    closed(&mut deaf).await?;
    honest.send(sds::ack(&last, &["default"]));
    pod.rotate()?;
    assert_ne!(serial(&honest.recv().await?)?, serial(&last)?);
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_client_with_a_tiny_window_is_rejected() -> testkit::Result {
    let pod = Pod::new().await?;
    closed(&mut by_hand(pod.shim.socket(), 200).await?).await?;
    pod.ask(&["default"]).await.map(drop)
}

#[tokio::test]
async fn a_signal_that_comes_as_soon_as_the_socket_is_there_ends_nothing() -> testkit::Result {
    for _ in 0..20 {
        let site = Site::new().await?;
        let mut shim = Logged(site.shim().start()?);
        while !shim.socket().exists() {
            assert!(shim.exited().is_none());
            tokio::task::yield_now().await;
        }
        shim.signal(Signal::SIGUSR1)?;
        let mut stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await?;
        assert_eq!(shim.terminate().await?.code(), Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn masses_of_trust_anchors_are_survived() -> testkit::Result {
    let site = Site::new().await?;
    let anchors: String = (0..150).map(|number| Pki::new(&number.to_string()).root_pem()).collect();
    // As many as the file may have bytes, the right one last.
    let room = 128 * 1024 - site.ca.root_pem().len();
    let cut = anchors[..room.min(anchors.len())].rfind("-----BEGIN").unwrap_or(0);
    site.workload.write_root(&format!("{}{}", &anchors[..cut], site.ca.root_pem())).or_fail("write the root")?;
    let mut shim = Logged(site.shim().confined(Confinement::default()).start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await.map_err(|failure| shim.explain(failure))?;
    for _ in 0..5 {
        shim.signal(Signal::SIGUSR1)?;
        stream.recv().await.map_err(|failure| shim.explain(failure))?;
    }
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_larger_arena_has_more_places() -> testkit::Result {
    const CONNECTIONS: usize = 40;
    let site = Site::new().await?;
    let arena = Confinement { ipc_lock: true, ..Confinement::default() };
    let mut shim = Logged(site.shim().confined(arena).env("SDS_SHIM_ARENA_KIB", "12288").start()?);
    shim.connect().await?;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = SdsClient::connect(shim.socket()).await.or_fail("connect")?;
        for _ in 0..10 {
            let mut stream = client.stream();
            stream.send(sds::request(&["default"]));
            stream.recv().await.map_err(|failure| shim.explain(failure))?;
            held.push(stream);
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_inotify_changes_are_still_seen_and_reported_once() -> testkit::Result {
    let mut site = Site::without_token(testkit::development_ca::CaOptions::default()).await?;
    // A user of its own, who has no inotify instance left: a filter makes the call fail as the kernel would.
    let limited = Confinement { without_inotify: true, ..Confinement::default() };
    let mut shim = Logged(site.shim().confined(limited).start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    shim.wait_for_log("cannot watch for changes").await?;
    site.refresh_token()?;
    own(site.workload.path(), UID, UID).or_fail("give the token to the shim's user")?;
    stream.recv().await?;
    assert_eq!(shim.log().count("cannot watch for changes"), 1);
    Ok(())
}
