#!/usr/bin/env bash
# A CA issues workload certificates without the extension basicConstraints, which no leaf needs by RFC 5280 (section 4.2.1.9:
# without it the key is no CA's): so does Vault's PKI unless basic_constraints_valid_for_non_ca is set. A Workload API tells them.
#
# Guess:    every library takes such an SVID, since it is no CA's certificate by either reading.
# Happens:  go-spiffe 2.9 and java-spiffe 0.8 take it. The Rust crate spiffe 0.19 and py-spiffe 0.3 refuse the answer, and with it
#           the application's own certificate: "X.509 extension is missing: 2.5.29.19".
# Matters:  a CA that has served a mesh of Envoys and Go for years gives services in Rust and Python no identity at all. Have it
#           set basicConstraints with CA:FALSE.
# Source:   the crate spiffe 0.19.0, github.com/spiffe/go-spiffe/v2 v2.9.0, spiffe 0.3.2 of PyPI, io.spiffe:java-spiffe-core
#           0.8.11, on a loopback socket; the X.509-SVID document, section 4.1 (basic constraints).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check spiffe==0.3.2 grpcio==1.82.1 cryptography==50.0.2
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.spiffe</groupId><artifactId>java-spiffe-core</artifactId><version>0.8.11</version></dependency>
    <dependency><groupId>io.spiffe</groupId><artifactId>grpc-netty-linux</artifactId><version>0.8.11</version></dependency>
  </dependencies>
</project>
XML
mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1 || { cat mvn.log; exit 1; }
cat >Client.java <<'JAVA'
import io.spiffe.workloadapi.DefaultWorkloadApiClient;

public class Client {
    public static void main(String[] arguments) throws Exception {
        for (var svid : DefaultWorkloadApiClient.newClient().fetchX509Context().getX509Svids()) System.out.println(svid.getSpiffeId());
        System.exit(0);
    }
}
JAVA
javac -cp 'lib/*' Client.java
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	got, err := workloadapi.FetchX509Context(context.Background())
	if err != nil {
		panic(err)
	}
	for _, svid := range got.SVIDs {
		fmt.Println(svid.ID)
	}
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/spiffe/go-spiffe/v2/workloadapi@v2.9.0 2>/dev/null
go build -o with-go .
cat >client.py <<'PYTHON'
from spiffe import WorkloadApiClient

for svid in WorkloadApiClient().fetch_x509_context().x509_svids: print(svid.spiffe_id)
PYTHON
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "with-rust"
version = "0.1.0"
edition = "2024"

[dependencies]
spiffe = { version = "=0.19.0", features = ["x509-source"] }
tokio = { version = "1", features = ["rt", "macros"] }
TOML
cat >src/main.rs <<'RUST'
#[tokio::main(flavor = "current_thread")]
async fn main() {
    match spiffe::WorkloadApiClient::connect_env().await.unwrap().fetch_x509_context().await {
        Ok(context) => context.svids().iter().for_each(|svid| println!("{}", svid.spiffe_id())),
        Err(error) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            println!("{cause}");
        }
    }
}
RUST
cargo build --quiet >cargo.log 2>&1 || { cat cargo.log; exit 1; }
go version; java -version 2>&1 | head -n 1
ls lib | grep '^java-spiffe-core'

cat >server.py <<'PYTHON'
import datetime, os, subprocess, sys, threading
from concurrent import futures
import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime.now(datetime.timezone.utc)
der = lambda c: c.public_bytes(serialization.Encoding.DER)

def certificate(subject, identity, key, issuer, issuer_key, ca, basic=True):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    b = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1))
         .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), False)
         .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True))
    if basic: b = b.add_extension(x509.BasicConstraints(ca, None), True)
    return der(b.sign(issuer_key, hashes.SHA256()))

def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

field = lambda number, content: varint(number << 3 | 2) + varint(len(content)) + content
root_key = ec.generate_private_key(ec.SECP256R1())
root = certificate("root", "spiffe://td", root_key, "root", root_key, True)

def svid(basic):
    key = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    leaf = certificate("a", "spiffe://td/a", key, "root", root_key, False, basic)
    return field(1, field(1, b"spiffe://td/a") + field(2, leaf) + field(3, pkcs8) + field(4, root))

def fetch(_, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    yield answer
    ended.wait(30)

server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(fetch)})])
server.add_insecure_port(f"unix:{os.getcwd()}/agent.sock")
server.start()
environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix:{os.getcwd()}/agent.sock"}
programs = {"go-spiffe": ["./with-go"], "py-spiffe": [sys.executable, "client.py"], "java-spiffe": ["java", "-cp", "lib/*:.", "Client"],
            "spiffe (Rust)": ["target/debug/with-rust"]}
refused = {"py-spiffe": "must have BasicConstraints extension", "spiffe (Rust)": "X.509 extension is missing: 2.5.29.19"}
same = True
for basic in (True, False):
    answer = svid(basic)
    for name, command in programs.items():
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        seen = (ended.stdout.strip() or ended.stderr.strip()).splitlines()[-1]
        print(f"{'with' if basic else 'without'} basicConstraints, {name}: {seen}")
        same &= seen == "spiffe://td/a" if basic or name not in refused else seen.endswith(refused[name])
server.stop(None)
if not same: sys.exit("the behaviour has changed")
PYTHON
timeout 240 venv/bin/python server.py
