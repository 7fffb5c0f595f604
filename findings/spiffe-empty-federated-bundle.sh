#!/usr/bin/env bash
# One of a workload's federated trust domains has no X.509 authorities: it issues JWT-SVIDs alone, or has withdrawn its roots.
# The Workload API then tells an empty bundle for it, beside the workload's own SVID and bundle.
#
# Guess:    no peer of that domain is trusted, and nothing else changes: so it is with go-spiffe, which has a bundle of no
#           authorities then.
# Happens:  py-spiffe 0.3.2 and java-spiffe 0.8.11 refuse the whole answer: the workload has no SVID and no bundle of its own.
#           py-spiffe says "Unable to parse DER X.509 certificate", java-spiffe "No certificates found"; neither names
#           the trust domain.
# Matters:  a partner who empties his bundle, or who starts with JWT keys alone, takes the Python and Java workloads that federate
#           with him down at their next start, also for their neighbours, while Go is content. Who serves a Workload API should leave
#           such a domain out.
# Source:   spiffe 0.3.2 of PyPI, io.spiffe:java-spiffe-core 0.8.11, github.com/spiffe/go-spiffe/v2 v2.9.0, on a loopback socket.
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
        try {
            var got = DefaultWorkloadApiClient.newClient().fetchX509Context();
            var of = got.getX509BundleSet().getBundles().values();
            of.forEach(bundle -> System.out.println(bundle.getTrustDomain() + ": " + bundle.getX509Authorities().size()));
            System.out.println(got.getDefaultSvid().getSpiffeId());
        } catch (Exception error) {
            Throwable first = error;
            while (first.getCause() != null) first = first.getCause();
            System.out.println("refused: " + first.getMessage());
        }
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
		fmt.Println("refused:", err)
		return
	}
	for _, bundle := range got.Bundles.Bundles() {
		fmt.Printf("%s: %d\n", bundle.TrustDomain().Name(), len(bundle.X509Authorities()))
	}
	fmt.Println(got.DefaultSVID().ID)
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/spiffe/go-spiffe/v2/workloadapi@v2.9.0 2>/dev/null
go build -o with-go .
cat >client.py <<'PYTHON'
from spiffe import WorkloadApiClient

try:
    got = WorkloadApiClient().fetch_x509_context()
    for bundle in got.x509_bundle_set.bundles: print(f"{bundle.trust_domain.name}: {len(bundle.x509_authorities)}")
    print(got.default_svid.spiffe_id)
except Exception as error:
    print(f"refused: {error}")
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
partner_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
partner = certificate("partner", "spiffe://partner", partner_key, "partner", partner_key, True)
leaf = certificate("a", "spiffe://td/a", key, "root", root_key, False)
pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
own = field(1, field(1, b"spiffe://td/a") + field(2, leaf) + field(3, pkcs8) + field(4, root))

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
same = True
for what, bundle in {"one root": partner, "empty": b""}.items():
    answer = own + field(3, field(1, b"spiffe://partner") + field(2, bundle))
    for name, command in programs.items():
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.splitlines()
        print(f"the partner's bundle: {what}: {name}: {', '.join(sorted(said))}")
        if bundle or name == "go-spiffe": same &= sorted(said) == [f"partner: {int(bundle != b'')}", "spiffe://td/a", "td: 1"]
        else: same &= len(said) == 1 and said[0].startswith("refused: ")
server.stop(None)
if not same: sys.exit("the behaviour has changed")
PYTHON
timeout 240 venv/bin/python server.py
