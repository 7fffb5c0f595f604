//! Clients that no server should have: each takes what it can get, breaks what it can break, and goes away.

mod application;
mod flood;
mod frames;
mod sluggish;

use std::{convert::Infallible, io, iter::repeat_with, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, net::UnixStream, time::timeout};

use self::sluggish::Sluggish;
use crate::{
    rng::Rng,
    sds::{self, SdsClient},
    unix,
};

/// How long one attack may last: many of them never end by themselves.
const LONGEST: Duration = Duration::from_millis(1500);

/// What a client may do.
#[derive(Clone, Copy, Debug)]
pub enum Attack {
    /// More connections and streams than there are places, with as many names as there can be.
    Crowd,
    /// Asks on many streams, and never reads.
    Deaf,
    /// Reads and writes one byte at a time.
    ByteByByte,
    /// Random bytes.
    Noise,
    /// HTTP/2 frames of random kinds with random content.
    Frames,
    /// The beginning of a frame, and no more.
    HalfFrame,
    /// Opens streams and resets them at once.
    Resets,
    /// One message that never ends.
    Endless,
    /// Requests and headers beyond every limit.
    Huge,
    /// A lawful client, which asks, accepts and leaves.
    Lawful,
    /// One connection with requests as fast as they are taken, and faster than is allowed.
    Flood,
    /// Two lawful connections with 250 requests in flight on each.
    InFlight,
    /// More connections than there are places, on which hardly anything is said.
    Silent,
    /// One connection with as many and as long names as there can be.
    Names,
    /// Connections that ask on a hundred streams each, again and again, and never read.
    Unread,
    /// Requests of many headers that take one byte each on their way.
    EmptyHeaders,
    /// Large documents that are asked for and not read.
    Documents,
    /// Connections that come and go.
    Connects,
    /// A stream that asks anew as soon as it is answered.
    Again,
    /// Calls of the Workload API that announce a large message.
    Announced,
    /// Calls of the Workload API whose headers never end.
    HalfHeaders,
}

impl Attack {
    /// All that a client of SDS does.
    pub const ALL: [Self; 19] = [
        Self::Crowd,
        Self::Deaf,
        Self::ByteByByte,
        Self::Noise,
        Self::Frames,
        Self::HalfFrame,
        Self::Resets,
        Self::Endless,
        Self::Huge,
        Self::Lawful,
        Self::Flood,
        Self::InFlight,
        Self::Silent,
        Self::Names,
        Self::Unread,
        Self::EmptyHeaders,
        Self::Documents,
        Self::Connects,
        Self::Again,
    ];
    /// All that an application does.
    pub const OF_APPLICATIONS: [Self; 2] = [Self::Announced, Self::HalfHeaders];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::OF_APPLICATIONS).find(|attack| format!("{attack:?}") == name)
    }

    /// Does it once. What the server makes of it, refusals and broken connections among them, is no failure.
    pub async fn run(self, socket: &Path, rng: &mut Rng) {
        self.run_for(socket, rng, LONGEST).await;
    }

    /// The same for longer, where it does not end by itself. Returns how often it did what it does, if it counts that.
    pub async fn run_for(self, socket: &Path, rng: &mut Rng, longest: Duration) -> u64 {
        let floods = longest.saturating_sub(longest / 8);
        let attack = async {
            match self {
                Self::Crowd => crowd(socket, rng).await.map(|()| 1),
                Self::Deaf => deaf(socket, rng).await.map(|()| 1),
                Self::ByteByByte => byte_by_byte(socket, rng).await.map(|()| 1),
                Self::Noise => noise(socket, rng).await.map(|()| 1),
                Self::Frames => frames(socket, rng).await.map(|()| 1),
                Self::HalfFrame => half_frame(socket, rng).await.map(|()| 1),
                Self::Resets => resets(socket, rng).await.map(|()| 1),
                Self::Endless => endless(socket, rng).await.map(|()| 1),
                Self::Huge => huge(socket, rng).await.map(|()| 1),
                Self::Lawful => lawful(socket, rng).await.map(|()| 1),
                Self::Flood => flood::requests(socket, floods).await,
                Self::InFlight => flood::in_flight(socket, floods).await,
                Self::Silent => flood::silent(socket, floods).await,
                Self::Names => flood::names(socket, floods).await,
                Self::Unread => flood::unread(socket, floods).await,
                Self::EmptyHeaders => flood::empty_headers(socket, floods).await,
                Self::Documents => flood::documents(socket, floods).await,
                Self::Connects => flood::connects(socket, floods).await,
                Self::Again => flood::again(socket, floods).await,
                Self::Announced => application::announced(socket, floods).await,
                Self::HalfHeaders => application::half_headers(socket, floods).await,
            }
        };
        timeout(longest, attack).await.map_or(0, |done| done.unwrap_or(0))
    }
}

async fn linger(rng: &mut Rng) {
    tokio::time::sleep(Duration::from_millis(rng.below(LONGEST.as_millis() as u64))).await;
}

async fn crowd(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let names: Vec<_> = (0..rng.within(1..60)).map(|name| format!("file-root:/{name}/{}", "x".repeat(1000))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut streams = Vec::new();
    for _ in 0..rng.within(1..25) {
        let Ok(client) = SdsClient::connect(socket).await else { continue };
        for _ in 0..rng.within(1..30) {
            let stream = client.stream();
            stream.send(sds::request(if rng.below(2) == 0 { &names } else { &["default"] }));
            streams.push(stream);
        }
    }
    linger(rng).await;
    Ok(())
}

async fn deaf(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let client = SdsClient::over(Sluggish::deaf(unix::connect(socket).await?)).await?;
    let streams: Vec<_> = (0..rng.within(1..40)).map(|_| client.stream()).collect();
    for stream in &streams {
        stream.send(sds::request(&["default", "ROOTCA"]));
    }
    linger(rng).await;
    Ok(())
}

async fn byte_by_byte(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let pause = Duration::from_millis(1 + rng.below(3));
    let client = SdsClient::over(Sluggish::byte_by_byte(unix::connect(socket).await?, pause)).await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let _ = stream.recv().await;
    Ok(())
}

async fn noise(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let mut stream = unix::connect(socket).await?;
    if rng.below(2) == 0 {
        stream.write_all(frames::PREFACE).await?;
    }
    let count = rng.within(1..100_000);
    stream.write_all(&rng.bytes(count)).await
}

async fn opened(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = unix::connect(socket).await?;
    stream.write_all(frames::PREFACE).await?;
    stream.write_all(&frames::settings()).await?;
    Ok(stream)
}

async fn frames(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let mut stream = opened(socket).await?;
    for _ in 0..rng.within(1..2000) {
        stream.write_all(&frames::random(rng)).await?;
    }
    linger(rng).await;
    Ok(())
}

async fn half_frame(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let mut stream = opened(socket).await?;
    stream.write_all(&frames::beginning(rng)).await?;
    linger(rng).await;
    Ok(())
}

async fn resets(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let client = SdsClient::connect(socket).await?;
    for _ in 0..rng.within(1..300) {
        let stream = client.stream();
        stream.send(sds::request(&["default"]));
        tokio::task::yield_now().await;
        drop(stream);
    }
    Ok(())
}

async fn endless(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let stream = TokioIo::new(unix::connect(socket).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
    let announced = if rng.below(2) == 0 { u32::MAX } else { 60_000 };
    let mut head = vec![0];
    head.extend(announced.to_be_bytes());
    let zeros = repeat_with(|| Bytes::from_static(&[0; 1024]));
    let body = [Bytes::from(head)].into_iter().chain(zeros).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let request = http::Request::post("http://localhost/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(tokio_stream::iter(body)))
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let answer = timeout(LONGEST / 2, sender.send_request(request)).await;
    linger(rng).await;
    connection.abort();
    drop(answer);
    Ok(())
}

async fn huge(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let client = SdsClient::connect(socket).await?;
    let length = rng.within(10_000..500_000);
    let client = match client.clone().with_metadata("x-junk", "x".repeat(length)) {
        Ok(with_header) if rng.below(2) == 0 => with_header,
        _ => client,
    };
    let stream = client.stream();
    let name = "n".repeat(rng.within(1000..2_000_000));
    stream.send(sds::request(&[&name]));
    let answer = client.fetch(sds::request(&[&name])).await;
    linger(rng).await;
    drop(answer);
    Ok(())
}

async fn lawful(socket: &Path, rng: &mut Rng) -> io::Result<()> {
    let client = SdsClient::connect(socket).await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut delta = client.delta();
    delta.send(sds::delta_request(&["default", "ROOTCA"], &[]));
    if let Ok(answer) = stream.recv().await {
        stream.send(sds::ack(&answer, &["default"]));
    }
    if let Ok(answer) = delta.recv().await {
        delta.send(sds::delta_ack(&answer));
    }
    linger(rng).await;
    Ok(())
}
