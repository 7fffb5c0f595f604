//! What a first certificate costs at least: a P-256 key, a CSR, one TLS 1.3 handshake, one HTTP/2 request to the CA,
//! and one write to a Unix socket. Nothing is protected, checked, kept or renewed; it is what `make bench` holds the
//! shim against, built as the shipped binary is.
//!
//! `floor SOCKET PORT ROOT TOKEN SPIFFE_ID` listens at SOCKET, asks the CA at that loopback port under the PEM file
//! ROOT with the token in the file TOKEN, and answers the first connection as an SDS server would, in one write. It
//! ends when that connection does.
#![forbid(unsafe_code)]

use std::{
    error::Error,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixListener,
};

use openssl::{
    ec::{EcGroup, EcKey},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    ssl::{Ssl, SslContext, SslMethod, SslStream, SslVerifyMode, SslVersion},
    stack::Stack,
    x509::{X509, X509ReqBuilder, extension::SubjectAlternativeName, store::X509StoreBuilder},
};

/// The name that the CA's server certificate carries.
const SERVER: &str = "istiod.istio-system.svc";
const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types and flags of HTTP/2's frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a day is in seconds: the lifetime that is asked for.
const DAY: u64 = 86_400;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: floor SOCKET PORT ROOT TOKEN SPIFFE_ID");
    let (socket, port, root, token, id) = (next()?, next()?, next()?, next()?, next()?);
    let listener = UnixListener::bind(socket)?;
    let (key, csr) = key_and_csr(&id)?;
    let mut stream = handshake(port.parse()?, &fs::read(root)?)?;
    let request = request(&csr, fs::read_to_string(token)?.trim());
    stream.write_all(&request)?;
    let chain = answer(&mut stream)?;
    let mut secret = key.private_key_to_pem_pkcs8()?;
    secret.extend(chain);
    let (mut envoy, _) = listener.accept()?;
    let mut push = frame(SETTINGS, 0, 0, &[]);
    push.extend(frame(DATA, 0, 1, &message(&secret)));
    envoy.write_all(&push)?;
    // Whoever asked is gone when this ends.
    std::io::copy(&mut envoy, &mut std::io::sink())?;
    Ok(())
}

fn key_and_csr(id: &str) -> Result<(PKey<Private>, Vec<u8>), ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut builder = X509ReqBuilder::new()?;
    builder.set_pubkey(&key)?;
    let mut extensions = Stack::new()?;
    extensions.push(SubjectAlternativeName::new().critical().uri(id).build(&builder.x509v3_context(None))?)?;
    builder.add_extensions(&extensions)?;
    builder.sign(&key, MessageDigest::sha256())?;
    Ok((key, builder.build().to_pem()?))
}

fn handshake(port: u16, root: &[u8]) -> Result<SslStream<TcpStream>, Box<dyn Error>> {
    let mut store = X509StoreBuilder::new()?;
    store.add_cert(X509::from_pem(root)?)?;
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_cert_store(store.build());
    context.set_verify(SslVerifyMode::PEER);
    context.set_alpn_protos(b"\x02h2")?;
    let mut ssl = Ssl::new(&context.build())?;
    ssl.set_hostname(SERVER)?;
    ssl.param_mut().set_host(SERVER)?;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    ssl.connect(stream).map_err(|error| error.to_string().into())
}

/// The whole request: what opens HTTP/2, the headers, the message.
fn request(csr: &[u8], token: &str) -> Vec<u8> {
    // Fields of HPACK's static table by their number, the others as literals that nobody has to remember (RFC 7541).
    let mut headers = vec![0x83, 0x87];
    for (field, value) in [
        (&[0x04][..], METHOD),
        (&[0x01], SERVER),
        (&[0x0f, 0x10], "application/grpc"),
        (&[0x00, 2, b't', b'e'], "trailers"),
    ] {
        headers.extend(field);
        text(&mut headers, value);
    }
    headers.extend([0x0f, 0x08]);
    text(&mut headers, &format!("Bearer {token}"));
    // IstioCertificateRequest: csr, validity_duration.
    let mut asked = vec![0x0a];
    varint(&mut asked, csr.len() as u64);
    asked.extend(csr);
    asked.push(0x18);
    varint(&mut asked, DAY);
    let mut request = PREFACE.to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    request.extend(frame(HEADERS, END_HEADERS, 1, &headers));
    request.extend(frame(DATA, END_STREAM, 1, &message(&asked)));
    request
}

/// A header's value, as it is: a length in HPACK's integers of seven bits, and the bytes.
fn text(out: &mut Vec<u8>, value: &str) {
    match value.len() {
        short @ 0..127 => out.push(short as u8),
        long => {
            out.push(127);
            varint(out, long as u64 - 127);
        }
    }
    out.extend(value.as_bytes());
}

/// Seven bits a byte, the least first: the same in HPACK and in protocol buffers.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A message as gRPC frames it.
fn message(body: &[u8]) -> Vec<u8> {
    [&[0], &(body.len() as u32).to_be_bytes()[..], body].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The certificates of the CA's answer, one after the other.
fn answer(stream: &mut impl Read) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload)?;
        if head[3] == DATA {
            body.extend(payload);
        }
        if head[3] != SETTINGS && head[4] & END_STREAM != 0 {
            break;
        }
    }
    // IstioCertificateResponse has one repeated field: its texts stand one behind the other.
    let mut rest = body.get(5..).ok_or("the CA refused")?;
    let mut chain = Vec::new();
    while let [0x0a, after @ ..] = rest {
        let (mut length, mut shift, mut at) = (0, 0, 0);
        loop {
            let byte = *after.get(at).ok_or("the answer is cut short")?;
            length |= usize::from(byte & 127) << shift;
            (shift, at) = (shift + 7, at + 1);
            if byte < 128 {
                break;
            }
        }
        chain.extend(after.get(at..at + length).ok_or("the answer is cut short")?);
        rest = &after[at + length..];
    }
    Ok(chain)
}
