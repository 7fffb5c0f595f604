#!/usr/bin/env bash
# A TLS client that is to spare system calls: SSL_CTX_set_read_ahead(1) before the connection is made, so that OpenSSL takes
# from the socket whatever has come, and not the header of each record and then its body.
#
# Guess:    the server's part of the handshake, which comes in one piece, takes one read, or two with what it sends after it.
# Happens:  with OpenSSL 3.6.3 the setting does nothing during the handshake: each of the six records of TLS 1.3 takes two
#           reads, one of five bytes and one of the rest, as without it. It begins with the first read after the handshake,
#           where three records come in one.
# Matters:  a client that connects for one call, as to a CA or a token service, makes most of its reads in the handshake.
#           A buffer of one's own between the socket and OpenSSL (tokio's BufReader, a BIO_f_buffer) serves both.
# Source:   OpenSSL 3.6.3 (openssl-src 300.6.1) by the openssl crate 0.10.82; SSL_CTX_set_read_ahead(3) does not tell.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "ahead"
edition = "2021"
[dependencies]
openssl = { version = "=0.10.82", features = ["vendored"] }
openssl-src = "=300.6.1"
TOML
cat >src/main.rs <<'RUST'
use openssl::{
    asn1::Asn1Time, ec::{EcGroup, EcKey}, hash::MessageDigest, nid::Nid, pkey::PKey,
    ssl::{Ssl, SslContext, SslMethod, SslVersion}, x509::X509,
};
use std::{
    io::{self, Read, Write}, os::unix::net::UnixStream, thread,
};

/// Notes how many bytes each read asks for.
#[derive(Debug)]
struct Counted(UnixStream, Vec<usize>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1.push(buffer.len());
        self.0.read(buffer)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn server() -> SslContext {
    let key = EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap();
    let key = PKey::from_ec_key(key).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
    context.set_certificate(&certificate.build()).unwrap();
    context.set_private_key(&key).unwrap();
    context.set_num_tickets(0).unwrap();
    context.build()
}

/// How many reads a client makes in the handshake, and for three short records after it.
fn reads(ahead: bool) -> (usize, usize) {
    let (near, far) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut stream = Ssl::new(&server()).unwrap().accept(far).unwrap();
        for _ in 0..3 {
            stream.ssl_write(b"hello").unwrap();
        }
        // Until the client has gone.
        let _ = stream.ssl_read(&mut [0; 1]);
    });
    let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
    context.set_min_proto_version(Some(SslVersion::TLS1_3)).unwrap();
    context.set_read_ahead(ahead);
    let mut stream = Ssl::new(&context.build()).unwrap().connect(Counted(near, Vec::new())).unwrap();
    let handshake = stream.get_ref().1.len();
    println!("read-ahead {ahead}: the reads of the handshake ask for {:?} bytes", stream.get_ref().1);
    // Once all three have come.
    let probe = stream.get_ref().0.try_clone().unwrap();
    probe.set_read_timeout(None).unwrap();
    while available(&probe) < 3 * 27 {
        thread::yield_now();
    }
    for _ in 0..3 {
        assert_eq!(stream.ssl_read(&mut [0; 16]).unwrap(), 5);
    }
    let after = stream.get_ref().1.len() - handshake;
    println!("  {handshake} reads in the handshake, {after} for three records after it");
    drop(stream);
    drop(probe);
    server.join().unwrap();
    (handshake, after)
}

/// Bytes that wait in the socket, at most a hundred.
fn available(socket: &UnixStream) -> usize {
    use std::os::fd::AsRawFd;
    extern "C" {
        fn recv(fd: i32, buffer: *mut u8, length: usize, flags: i32) -> isize;
    }
    const MSG_PEEK: i32 = 2;
    let mut buffer = [0_u8; 100];
    unsafe { recv(socket.as_raw_fd(), buffer.as_mut_ptr(), buffer.len(), MSG_PEEK) as usize }
}

fn main() {
    println!("{}", openssl::version::version());
    if (reads(false), reads(true)) != ((12, 6), (12, 1)) {
        eprintln!("the behaviour has changed");
        std::process::exit(1);
    }
}
RUST
cargo run --quiet
