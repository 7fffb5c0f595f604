//! HTTP/2 frames without an end, in place of an answer.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What is sent once a call has arrived, until the client closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Informational answers (103), of ten bytes each.
    Informational,
    /// The same with some hundred headers, each named by its index.
    Headers,
    /// The beginning of an answer, and then frames of its body that are empty.
    EmptyData,
    /// The same with one byte in each.
    Bytes,
    /// The beginning of a message of 4 GiB.
    Endless,
    /// One header block that goes on.
    Continuation,
    /// An error with a text as large as headers may be, as often as the client likes.
    Message,
    /// PING.
    Pings,
    /// SETTINGS.
    Settings,
    /// Frames of a kind that does not exist.
    Unknown,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const HEAD: usize = 9;

impl Flood {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Informational,
        Self::Headers,
        Self::EmptyData,
        Self::Bytes,
        Self::Endless,
        Self::Continuation,
        Self::Message,
        Self::Pings,
        Self::Settings,
        Self::Unknown,
    ];

    /// What comes once, and what is repeated.
    fn frames(self) -> (Vec<u8>, Vec<u8>) {
        // HPACK (RFC 7541): ":status: 103" spelt out and kept, from then on the first of the dynamic table.
        let early = frame(HEADERS, END_HEADERS, 1, b"\x48\x03103");
        // ":status: 200" and "content-type: application/grpc".
        let good = frame(HEADERS, END_HEADERS, 1, b"\x88\x0f\x10\x10application/grpc");
        // "accept-encoding: gzip, deflate", of the static table.
        let many = [&[0xbe][..], &[0x90; 250]].concat();
        let message = [
            b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x0214\x00\x0cgrpc-message\x7f\x81\x76".as_slice(),
            &[b'x'; 15_232],
        ]
        .concat();
        match self {
            Self::Informational => (early, frame(HEADERS, END_HEADERS, 1, &[0xbe])),
            Self::Headers => (early, frame(HEADERS, END_HEADERS, 1, &many)),
            Self::EmptyData => (good, frame(DATA, 0, 1, b"")),
            Self::Bytes => (good, frame(DATA, 0, 1, b"\0")),
            Self::Endless => ([good, frame(DATA, 0, 1, b"\0\xff\xff\xff\xff")].concat(), frame(DATA, 0, 1, &[7; 1024])),
            Self::Continuation => (frame(HEADERS, 0, 1, b"\x88"), frame(CONTINUATION, 0, 1, &[0x90; 1024])),
            Self::Message => (Vec::new(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &message)),
            Self::Pings => (Vec::new(), frame(PING, 0, 0, &[0; 8])),
            Self::Settings => (Vec::new(), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
            Self::Unknown => (Vec::new(), frame(0x20, 0, 1, b"")),
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u16;
    [&[0, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, stream], content].concat()
}

/// Waits for a call, and floods the client for as long as it takes what comes.
pub(crate) async fn flood<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, flood: Flood) -> std::io::Result<()> {
    let mut preface = [0; PREFACE];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).await?;
    stream.flush().await?;
    loop {
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == HEADERS {
            break;
        }
    }
    let (first, again) = flood.frames();
    stream.write_all(&first).await?;
    let many = again.repeat((16 * 1024 / again.len()).max(1));
    loop {
        stream.write_all(&many).await?;
    }
}
