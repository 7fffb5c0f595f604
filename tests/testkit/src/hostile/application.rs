//! Applications that take more than their share on the Workload API's socket.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{frames, opened};
use crate::workload_api::HEADER;

/// As many as there are places.
const CONNECTIONS: usize = 16;
/// How long one that was refused waits before it comes again.
const AGAIN: Duration = Duration::from_millis(200);
/// The head of a message of 65,000 bytes (gRPC over HTTP/2): no compression, and the size.
const ANNOUNCED: [u8; 5] = [0, 0, 0, 0xfd, 0xe8];

/// A header that is written out (RFC 7541, section 6.2.1), with texts of less than 127 bytes.
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [vec![0x40], text(name), text(value)].concat()
}

/// The headers of a lawful call.
fn block() -> Vec<u8> {
    let post_and_http = vec![0x83, 0x86];
    let headers = [
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        HEADER,
    ];
    headers.into_iter().fold(post_and_http, |block, (name, value)| [block, header(name, value)].concat())
}

/// Connections with calls that announce a large message and send nothing of it, each anew as soon as it has ended.
pub(super) async fn announced(socket: &Path, lasting: Duration) -> io::Result<u64> {
    everywhere(socket, lasting, |stream| {
        let request = frames::with_content(frames::HEADERS, frames::END_HEADERS, stream, &block());
        [request, frames::with_content(frames::DATA, 0, stream, &ANNOUNCED)].concat()
    })
    .await
}

/// Connections with the first 40,000 bytes of headers that never end.
pub(super) async fn half_headers(socket: &Path, lasting: Duration) -> io::Result<u64> {
    const PART: usize = 10_000;
    // A value of 45,000 bytes (RFC 7541, section 5.1).
    let long = [&[0x40, 1, b'x', 0x7f, 0xc9, 0xde, 0x02][..], &[b'y'; PART]].concat();
    let begun = [block(), long].concat();
    everywhere(socket, lasting, move |stream| {
        let rest = frames::with_content(frames::CONTINUATION, 0, stream, &[b'y'; PART]);
        [frames::with_content(frames::HEADERS, 0, stream, &begun), rest.repeat(3)].concat()
    })
    .await
}

/// Sends a call on each of many connections, and the next one when it has ended. Returns how many there were.
async fn everywhere(
    socket: &Path,
    lasting: Duration,
    call: impl Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> io::Result<u64> {
    let end = Instant::now() + lasting;
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (socket, call) = (socket.to_owned(), call.clone());
        tasks.spawn(async move {
            let mut count = 0;
            while Instant::now() < end {
                let _ = timeout_at(end, calls(&socket, &call, &mut count)).await;
                sleep(AGAIN).await;
            }
            count
        });
    }
    Ok(tasks.join_all().await.into_iter().sum())
}

/// Until the connection ends.
async fn calls(socket: &Path, call: impl Fn(u32) -> Vec<u8>, count: &mut u64) -> io::Result<()> {
    const RST_STREAM: u8 = 3;
    let mut connection = opened(socket).await?;
    for stream in (1..).step_by(2) {
        connection.write_all(&call(stream)).await?;
        *count += 1;
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await?;
            let [a, b, c, kind, flags, id @ ..] = head;
            connection.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).await?;
            let ended = kind == RST_STREAM || kind == frames::HEADERS && flags & frames::END_STREAM != 0;
            if ended && u32::from_be_bytes(id) == stream {
                break;
            }
        }
    }
    Ok(())
}
