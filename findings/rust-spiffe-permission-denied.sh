#!/usr/bin/env bash
# A SPIFFE Workload API ends a stream with PERMISSION_DENIED, as SPIRE's agent does when an entry is gone or the agent has
# just been started: what do the libraries' X.509 sources serve until it tells the certificate again?
#
# Guess:    what they hold, which is valid for hours, as go-spiffe and py-spiffe do. All of them come of one specification.
# Happens:  the crate spiffe 0.19.0 withdraws certificate and bundles at once: X509Source::svid() is an error until a whole
#           answer comes. py-spiffe 0.3.2 goes on serving. After UNAVAILABLE both go on.
# Matters:  who serves a Workload API must not answer PERMISSION_DENIED for trouble of its own: to a client in Rust that is
#           an outage at once. UNAVAILABLE is for that.
# Source:   spiffe 0.19.0 of crates.io and spiffe 0.3.2 of PyPI, on loopback sockets.
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check spiffe==0.3.2 grpcio==1.82.1 cryptography==50.0.2
mkdir -p "$work/rust/src"
cat >"$work/rust/Cargo.toml" <<'TOML'
[package]
name = "client"
version = "0.1.0"
edition = "2021"
[dependencies]
spiffe = { version = "=0.19.0", features = ["x509-source"] }
tokio = { version = "1", features = ["rt", "io-std", "io-util", "macros"] }
TOML
cat >"$work/rust/src/main.rs" <<'RUST'
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let source = spiffe::X509Source::new().await.expect("a first certificate");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await.expect("a line").is_some() {
        println!("{}", source.svid().is_ok());
    }
}
RUST
cat >"$work/client.py" <<'PYTHON'
import sys
from spiffe import X509Source

with X509Source() as source:
    for _ in sys.stdin:
        try:
            print(source.svid is not None, flush=True)
        except Exception:
            print(False, flush=True)
PYTHON
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path "$work/rust/Cargo.toml"

cat >"$work/server.py" <<'PYTHON'
import datetime, os, subprocess, sys, threading, time
from concurrent import futures
import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

WORK = sys.argv[1]
NOW = datetime.datetime.now(datetime.timezone.utc)

def certificate(subject, key, issuer_key, ca):
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    b = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("root")).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1))
         .add_extension(x509.BasicConstraints(ca, None), True)
         .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True))
    if ca:
        b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td")]), False)
    else:
        b = (b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/a")]), False)
             .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False))
    return b.sign(issuer_key, hashes.SHA256())

root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
der = lambda c: c.public_bytes(serialization.Encoding.DER)
pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

field = lambda number, content: varint(number << 3 | 2) + varint(len(content)) + content
SVID = field(1, b"spiffe://td/a") + field(2, der(certificate("a", key, root_key, False))) + field(3, pkcs8)
MESSAGE = field(1, SVID + field(4, der(certificate("root", root_key, root_key, True))))

def look(client, answer, code):
    """Whether the client has a certificate before its stream is ended with this code, and after two more calls."""
    address, over, calls = f"{WORK}/{client}-{code.name}.sock", threading.Event(), []
    def fetch(_, context):
        calls.append(time.monotonic())
        if not over.is_set():
            yield MESSAGE
            over.wait()
        context.abort(code, "no identity issued")
    server = grpc.server(futures.ThreadPoolExecutor(8))
    handler = grpc.unary_stream_rpc_method_handler(fetch)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler})])
    server.add_insecure_port(f"unix:{address}")
    server.start()
    program = {"rust": [f"{WORK}/target/debug/client"], "python": [sys.executable, f"{WORK}/client.py"]}[client]
    process = subprocess.Popen(program, env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix:{address}"}, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    def has():
        process.stdin.write("\n"); process.stdin.flush()
        return process.stdout.readline().strip().lower() == "true"
    before, first = has(), len(calls)
    over.set()
    deadline = time.monotonic() + 60
    while len(calls) < first + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    after = has()
    process.kill(); process.wait(); server.stop(None)
    return before, after

codes = [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE]
seen = {(client, code.name): look(client, None, code) for client in ("rust", "python") for code in codes}
for (client, code), (before, after) in seen.items():
    print(f"{client}: has a certificate: {before}; after {code}: {after}")
if seen != {("rust", "PERMISSION_DENIED"): (True, False), ("rust", "UNAVAILABLE"): (True, True),
            ("python", "PERMISSION_DENIED"): (True, True), ("python", "UNAVAILABLE"): (True, True)}:
    sys.exit("the behaviour has changed")
PYTHON
timeout 300 "$work/venv/bin/python" "$work/server.py" "$work"
