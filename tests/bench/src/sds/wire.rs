//! Bytes of HTTP/2 (RFC 9113), HPACK (RFC 7541), gRPC and protocol buffers, as far as this client speaks them.

/// Types of frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Flags of frames.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Bytes of a frame's head, and of what stands before a gRPC message.
pub(super) const HEAD: usize = 9;
pub(super) const PREFIX: usize = 5;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const METHOD: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const NODE: &str = "sidecar~127.0.0.1~sleep.foo~cluster.local";
const INITIAL_WINDOW_SIZE: u16 = 4;
/// What a server may send without being told to go on: more than it ever does here.
const STREAM_WINDOW: u32 = 64 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// What opens a connection.
pub(super) fn opening() -> Vec<u8> {
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(STREAM_WINDOW.to_be_bytes());
    let mut out = PREFACE.to_vec();
    out.extend(frame(SETTINGS, 0, 0, &settings));
    out.extend(frame(WINDOW_UPDATE, 0, 0, &CONNECTION_WINDOW.to_be_bytes()));
    out
}

/// What opens a stream and asks for a secret on it.
pub(super) fn ask(stream: u32, name: &str) -> Vec<u8> {
    // Fields of the static table by their number, the others as literals that nobody has to remember.
    let mut headers = vec![0x83, 0x86];
    let fields: [(&[u8], &str); 4] =
        [(&[0x04], METHOD), (&[0x01], "localhost"), (&[0x0f, 0x10], "application/grpc"), (b"\x00\x02te", "trailers")];
    for (field, value) in fields {
        headers.extend(field);
        headers.push(value.len() as u8);
        headers.extend(value.as_bytes());
    }
    let mut node = Vec::new();
    text(&mut node, 1, NODE.as_bytes());
    let mut request = Vec::new();
    text(&mut request, 2, &node);
    text(&mut request, 3, name.as_bytes());
    text(&mut request, 4, TYPE_URL.as_bytes());
    let mut out = frame(HEADERS, END_HEADERS, stream, &headers);
    out.extend(frame(DATA, 0, stream, &message(&request)));
    out
}

/// What acknowledges an answer.
pub(super) fn acknowledge(stream: u32, name: &str, answer: &Answer) -> Vec<u8> {
    let mut request = Vec::new();
    text(&mut request, 1, &answer.version);
    text(&mut request, 3, name.as_bytes());
    text(&mut request, 4, TYPE_URL.as_bytes());
    text(&mut request, 5, &answer.nonce);
    frame(DATA, 0, stream, &message(&request))
}

/// What an acknowledgement needs of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    version: Vec<u8>,
    nonce: Vec<u8>,
}

impl Answer {
    /// Of a `DiscoveryResponse`. What cannot be read is left out: the floor's answer is not one.
    pub(super) fn read(mut message: &[u8]) -> Self {
        let mut answer = Self::default();
        while let Some((tag, after)) = varint(message) {
            let Some((length, after)) = varint(after).filter(|_| tag & 7 == 2) else { break };
            let Some((value, rest)) = after.split_at_checked(length) else { break };
            match tag >> 3 {
                1 => answer.version = value.to_vec(),
                5 => answer.nonce = value.to_vec(),
                _ => {}
            }
            message = rest;
        }
        answer
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[0], &(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn text(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    let mut length = value.len();
    while length > 127 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(value);
}

fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= usize::from(byte & 127) << (7 * at);
        if *byte < 128 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_behind_large_fields() {
        let mut message = Vec::new();
        text(&mut message, 1, b"version");
        text(&mut message, 2, &[7; 4000]);
        text(&mut message, 5, b"nonce");
        let answer = Answer::read(&message);
        assert_eq!((answer.version.as_slice(), answer.nonce.as_slice()), (&b"version"[..], &b"nonce"[..]));
        assert_eq!(Answer::read(b"-----BEGIN PRIVATE KEY-----"), Answer::default());
    }

    #[test]
    fn a_frame_has_its_length_and_stream_before_its_payload() {
        assert_eq!(frame(DATA, END_STREAM, 3, b"ab"), [0, 0, 2, 0, 1, 0, 0, 0, 3, b'a', b'b']);
    }
}
