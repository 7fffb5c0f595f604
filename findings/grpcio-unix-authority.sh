#!/usr/bin/env bash
# A Python (or C++, Ruby, PHP: any gRPC C-core) client calls a Rust gRPC server by its Unix socket.
#
# Guess:    a Unix socket has no host name, so :authority is "localhost", as grpc-go and grpc-js send it; and whatever it
#           is, the server does not care, as the socket has been reached.
# Happens:  C-core 1.85 sends the socket's *path*, percent-encoded and without its first slash: "tmp%2Fagent.sock". That
#           is no authority to Rust's http crate, so the h2 crate (under hyper and tonic) resets the stream with
#           PROTOCOL_ERROR before a service sees it; the client reports "Stream removed". With
#           the option grpc.default_authority=localhost the same call arrives.
# Matters:  SDS and the SPIFFE Workload API live on Unix sockets. A probe or test written in Python finds a dead server
#           where Envoy and Go clients are served, and nothing on either side names the cause.
# Source:   grpcio 1.85.3, h2 0.4.20, http 1.5.0.
set -euo pipefail

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check grpcio==1.85.3 h2==4.4.1
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "server"
edition = "2021"
[dependencies]
h2 = "=0.4.20"
http = "=1.5.0"
tokio = { version = "=1.54.1", features = ["net", "rt"] }
TOML
cat >src/main.rs <<'RUST'
// Answers every call with the status UNIMPLEMENTED and prints what authority it was for.
fn main() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let listener = tokio::net::UnixListener::bind(std::env::args().nth(1).unwrap()).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(stream: tokio::net::UnixStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        println!("server: a call for {:?}", request.uri().authority());
        let answer = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
        respond.send_response(answer.body(()).unwrap(), true).unwrap();
    }
}
RUST
CARGO_TARGET_DIR=$work/target cargo build --quiet
cargo tree --quiet --depth 1
./target/debug/server "$work/agent.sock" &
server=$!

timeout 60 venv/bin/python - "$work/agent.sock" <<'PYTHON'
import os, socket, sys, threading, time
import grpc, h2.config, h2.connection, h2.events

print("grpcio", grpc.__version__)
path = sys.argv[1]
while not os.path.exists(path): time.sleep(0.05)

def call(path, *options):
    with grpc.insecure_channel("unix:" + path, options=options) as channel:
        try: channel.unary_unary("/a.Service/Call")(b"", timeout=10)
        except grpc.RpcError as error: return error.code().name, error.details()

def authority_sent():
    """What a socket that only reads the request sees."""
    listener = socket.socket(socket.AF_UNIX); listener.bind(path + "2"); listener.listen(); listener.settimeout(30)
    threading.Thread(target=call, args=(path + "2",), daemon=True).start()
    peer, _ = listener.accept(); peer.settimeout(30)
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False))
    http2.initiate_connection(); peer.sendall(http2.data_to_send())
    while data := peer.recv(65536):
        for event in http2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                peer.close(); return dict(event.headers)[":authority"]
        peer.sendall(http2.data_to_send())

sent, plain, named = authority_sent(), call(path), call(path, ("grpc.default_authority", "localhost"))
print(":authority on the wire:", sent)
print("as it is:              ", *plain)
print("with default_authority:", *named)
if sent != (path + "2")[1:].replace("/", "%2F") or plain[0] != "INTERNAL" or "error code 1" not in plain[1] or named[0] != "UNIMPLEMENTED":
    sys.exit("the behaviour has changed")
PYTHON
