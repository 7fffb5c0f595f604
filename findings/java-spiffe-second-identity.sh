#!/usr/bin/env bash
# A workload is entitled to two SPIFFE IDs (two registration entries match it), and neither has a hint: the field is optional.
#
# Guess:    the library has both, the first as the default, and a picker chooses; so it is with go-spiffe and py-spiffe.
# Happens:  java-spiffe 0.8.11 takes the missing hint of both for the same hint, of which the Workload API's document has the
#           first win, and drops the second SVID before any picker sees it. With a hint on either one both are there.
# Matters:  a second entry for a migration (old ID and new) works in Go and Python; in Java the new identity does not exist, and
#           no error or warning is told. Which one is lost depends on the order in which the agent lists them. Give
#           each entry a hint.
# Source:   io.spiffe:java-spiffe-core 0.8.11, github.com/spiffe/go-spiffe/v2 v2.9.0, spiffe 0.3.2 of PyPI, on a loopback socket;
#           the SPIFFE Workload API document, section 5.2.1 (hint).
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

def certificate(subject, identity, key, issuer, issuer_key, ca):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    return der(x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1))
               .add_extension(x509.BasicConstraints(ca, None), True)
               .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
               .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), False).sign(issuer_key, hashes.SHA256()))

def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

field = lambda number, content: varint(number << 3 | 2) + varint(len(content)) + content
root_key = ec.generate_private_key(ec.SECP256R1())
root = certificate("root", "spiffe://td", root_key, "root", root_key, True)

def svid(identity, hint):
    key = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return field(1, field(1, identity.encode()) + field(2, certificate("a", identity, key, "root", root_key, False)) + field(3, pkcs8)
                 + field(4, root) + (field(5, hint.encode()) if hint else b""))

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
programs = {"go-spiffe": ["./with-go"], "py-spiffe": [sys.executable, "client.py"], "java-spiffe": ["java", "-cp", "lib/*:.", "Client"]}
both, first = ["spiffe://td/old", "spiffe://td/new"], ["spiffe://td/old"]
same = True
for hints, java in ((("", ""), first), (("", "new"), both), (("old", "new"), both)):
    answer = svid("spiffe://td/old", hints[0]) + svid("spiffe://td/new", hints[1])
    seen = {name: subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.split() for name, command in programs.items()}
    print(f"hints {hints}: {seen}")
    same &= seen == {"go-spiffe": both, "py-spiffe": both, "java-spiffe": java}
server.stop(None)
if not same: sys.exit("the behaviour has changed")
PYTHON
timeout 240 venv/bin/python server.py
