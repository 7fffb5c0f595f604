//! Clients that take more than their share, most of them within the letter of the protocol.

use std::{io, path::Path, time::Duration};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{frames, opened, sluggish::Sluggish};
use crate::{
    sds::{self, SdsClient},
    unix,
};

const SERVICE: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";
const METHOD_POST: u8 = 0x83;
const SCHEME_HTTP: u8 = 0x86;

/// A header block (RFC 7541): `:method` and `:scheme` by index, the other headers by their names, so that each later
/// block can name them by index.
fn first_block(call: &str) -> Vec<u8> {
    let mut block = vec![METHOD_POST, SCHEME_HTTP];
    let path = format!("{SERVICE}{call}");
    for (name, value) in [
        (":path", path.as_str()),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0x40);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The same headers in six bytes.
const LATER_BLOCK: [u8; 6] = [METHOD_POST, SCHEME_HTTP, 0xc1, 0xc0, 0xbf, 0xbe];

fn message(names: &[&str]) -> Vec<u8> {
    let message = sds::request(names).encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

/// Writes requests as fast as they are taken, whatever the server allows. Returns how many there were.
pub(super) async fn requests(socket: &Path, lasting: Duration) -> io::Result<u64> {
    const AT_ONCE: u32 = 64;
    let end = Instant::now() + lasting;
    let (mut reader, mut writer) = opened(socket).await?.into_split();
    let discarded = tokio::spawn(async move {
        let mut answer = vec![0; 1 << 16];
        while reader.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    });
    let (body, mut sent) = (message(&["default"]), 0_u32);
    while Instant::now() < end {
        let mut batch = Vec::new();
        for _ in 0..AT_ONCE {
            let block = if sent == 0 { first_block("FetchSecrets") } else { LATER_BLOCK.to_vec() };
            let stream = 2 * sent + 1;
            batch.extend(frames::with_content(frames::HEADERS, frames::END_HEADERS, stream, &block));
            batch.extend(frames::with_content(frames::DATA, frames::END_STREAM, stream, &body));
            sent += 1;
        }
        match timeout_at(end, writer.write_all(&batch)).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    discarded.abort();
    Ok(sent.into())
}

/// Two lawful connections with 250 requests in flight on each, all the time.
pub(super) async fn in_flight(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let client = SdsClient::connect(socket).await?;
        for _ in 0..250 {
            let client = client.clone();
            tasks.spawn(async move {
                let mut answered = 0;
                while let Ok(Ok(_)) = timeout_at(end, client.fetch(sds::request(&["default"]))).await {
                    answered += 1;
                }
                answered
            });
        }
    }
    Ok(tasks.join_all().await.into_iter().sum())
}

/// Many connections on which nothing is said, or no more than that there will be something.
pub(super) async fn silent(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut held = Vec::new();
    let mut opened = 0;
    while Instant::now() < end {
        if let Ok(mut stream) = unix::connect(socket).await {
            let begun = match opened % 3 {
                0 => Vec::new(),
                1 => [frames::PREFACE, &frames::settings()].concat(),
                _ => {
                    let request =
                        frames::with_content(frames::HEADERS, frames::END_HEADERS, 1, &first_block("StreamSecrets"));
                    [frames::PREFACE, &frames::settings(), &request].concat()
                }
            };
            let _ = stream.write_all(&begun).await;
            opened += 1;
            held.push(stream);
            held.drain(..held.len().saturating_sub(64));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(opened)
}

/// One connection with as many names as its streams may have, each as long as it may be.
pub(super) async fn names(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let client = SdsClient::connect(socket).await?;
    let mut streams = Vec::new();
    for stream in 0..8 {
        let delta = client.delta();
        for part in 0..10 {
            let names: Vec<_> =
                (0..6).map(|name| format!("file-root:/{stream}/{part}/{name}/{}", "x".repeat(8000))).collect();
            delta.send(sds::delta_request(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]));
        }
        streams.push(delta);
    }
    sleep(end.saturating_duration_since(Instant::now())).await;
    Ok(streams.len() as u64)
}

/// Four connections that ask as often as they may and read nothing.
pub(super) async fn unread(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let Ok(client) = SdsClient::over(Sluggish::deaf(unix::connect(socket).await?)).await else { continue };
        for _ in 0..100 {
            let stream = client.stream();
            stream.send(sds::request(&["default", "ROOTCA"]));
            streams.push(stream);
        }
    }
    while Instant::now() < end {
        // Asked anew, each is answered anew.
        for stream in &streams {
            stream.send(sds::request(&["default", "ROOTCA"]));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(streams.len() as u64)
}

/// Eight connections with requests of five hundred empty headers, each a byte on its way, that never end.
pub(super) async fn empty_headers(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = opened(socket).await?;
        let mut block = first_block("StreamSecrets");
        block.extend([&[0x40, 1, b'x', 0][..], &[0xbe; 499]].concat());
        for request in 0..30 {
            let frame = frames::with_content(frames::HEADERS, frames::END_HEADERS, 2 * request + 1, &block);
            let _ = timeout_at(end, stream.write_all(&frame)).await;
        }
        held.push(stream);
    }
    sleep(end.saturating_duration_since(Instant::now())).await;
    Ok(held.len() as u64)
}

/// Twelve connections that ask for the largest document and do not read it.
pub(super) async fn documents(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut held = JoinSet::new();
    for _ in 0..12 {
        let stream = Sluggish::deaf(unix::connect(socket).await?);
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let Ok((mut sender, connection)) = handshake else { continue };
        held.spawn(async move {
            let connection = tokio::spawn(connection);
            let mut answers = JoinSet::new();
            for _ in 0..10 {
                let request = http::Request::get("http://localhost/status").body(String::new());
                answers.extend(request.ok().map(|request| sender.send_request(request)).map(|answer| async move {
                    drop(answer.await);
                }));
            }
            sleep(end.saturating_duration_since(Instant::now())).await;
            connection.abort();
        });
    }
    Ok(held.join_all().await.len() as u64)
}

/// Connects and goes away, as fast as that can be.
pub(super) async fn connects(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut count = 0;
    while Instant::now() < end {
        count += u64::from(
            timeout_at(end, unix::connect(socket)).await.is_ok_and(|stream: io::Result<UnixStream>| stream.is_ok()),
        );
    }
    Ok(count)
}

/// A stream that asks anew as soon as it is answered.
pub(super) async fn again(socket: &Path, lasting: Duration) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut stream = SdsClient::connect(socket).await?.stream();
    let mut answers = 0;
    while Instant::now() < end {
        stream.send(sds::request(&["default"]));
        if stream.recv().await.is_err() {
            break;
        }
        answers += 1;
    }
    Ok(answers)
}
