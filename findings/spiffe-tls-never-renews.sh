#!/usr/bin/env bash
# A server in Python takes its certificates from the Workload API by spiffe-tls (spiffetls.listen, of py-spiffe's authors). The CA
# issues from an intermediate, which is in each SVID's chain, as istiod with a plugged-in CA does, and SPIRE under another.
#
# Guess:    after each renewal the server presents the new leaf and its intermediate: two certificates, as at first.
# Happens:  with pyOpenSSL 26.2 or later, which pip installs, it presents the first certificate for ever: pyOpenSSL refuses to
#           change a context that has had a connection, and spiffe-tls 0.4.0 changes its one. The log has an error at each
#           renewal, and the source itself holds the new SVID. With pyOpenSSL 26.0 and 26.1 the new leaf is presented, and one
#           more copy of the intermediate with each renewal, until a peer finds the chain too long.
# Matters:  a service that was tested for a minute is down when its first certificate ends, in an hour by SPIRE's default. Make
#           a context for each connection, as spiffetls.dial does, or a new listener when the source tells of an update.
# Source:   spiffe-tls 0.4.0 (which asks for pyOpenSSL 26), spiffe 0.3.2, pyOpenSSL 26.1.0 and 26.4.0, grpcio 1.82.1 of PyPI.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for pyopenssl in 26.1.0 26.4.0; do
  python3 -m venv "$pyopenssl"
  "$pyopenssl/bin/pip" install --quiet --disable-pip-version-check spiffe-tls==0.4.0 spiffe==0.3.2 grpcio==1.82.1 "pyopenssl==$pyopenssl"
done
cat >scene.py <<'PYTHON'
import datetime, os, queue, socket, sys, threading
from concurrent import futures
import grpc
from OpenSSL import SSL
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import X509Source
from spiffetls import ListenOptions, listen
from spiffetls.mode import ServerTlsMode

NOW = datetime.datetime.now(datetime.timezone.utc)
new_key = lambda: ec.generate_private_key(ec.SECP256R1())
der = lambda c: c.public_bytes(serialization.Encoding.DER)

def certificate(subject, key, issuer, issuer_key, ca, identity):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    return (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), False).sign(issuer_key, hashes.SHA256()))

def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

field = lambda number, content: varint(number << 3 | 2) + varint(len(content)) + content
root_key, intermediate_key = new_key(), new_key()
root = certificate("root", root_key, "root", root_key, True, "spiffe://td")
intermediate = certificate("intermediate", intermediate_key, "root", root_key, True, "spiffe://td")

def svid():
    """An answer of the Workload API with a new certificate and key; and the certificate's serial number."""
    key = new_key()
    leaf = certificate("server", key, "intermediate", intermediate_key, False, "spiffe://td/server")
    pkcs8 = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return field(1, field(1, b"spiffe://td/server") + field(2, der(leaf) + der(intermediate)) + field(3, pkcs8) + field(4, der(root))), leaf.serial_number

answers = queue.Queue()
def fetch(_, context):
    while (answer := answers.get()) is not None: yield answer

api = grpc.server(futures.ThreadPoolExecutor(4))
api.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(fetch)})])
api.add_insecure_port(f"unix:{os.getcwd()}/agent.sock")
api.start()
answer, serial = svid()
answers.put(answer)
source = X509Source(socket_path=f"unix:{os.getcwd()}/agent.sock", timeout_in_seconds=30)
listening = listen("127.0.0.1:0", source, ListenOptions(tls_mode=ServerTlsMode.TLS))
# Told after the server's context, which has subscribed before.
updated = threading.Semaphore(0)
source.subscribe_for_updates(updated.release)

def serve():
    while True:
        connection, _ = listening.accept()
        # Whoever has seen the chain goes away.
        try: connection.do_handshake()
        except SSL.Error: pass
        connection.close()

threading.Thread(target=serve, daemon=True).start()

def presented():
    """What a new connection is shown: the leaf's serial number, and the names of the certificates."""
    with socket.create_connection(listening.getsockname()) as s:
        connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), s)
        connection.set_connect_state(); connection.do_handshake()
        chain = connection.get_peer_cert_chain()
    return chain[0].get_serial_number(), [c.get_subject().CN for c in chain]

seen = []
for renewal in range(4):
    if renewal:
        answer, serial = svid()
        answers.put(answer)
        if not updated.acquire(timeout=30): sys.exit("the library has not told of the new certificate")
        if source.svid.leaf.serial_number != serial: sys.exit("the source does not hold the new certificate")
    shown, names = presented()
    seen.append(f"{'new' if shown == serial else 'old'}+{names.count('intermediate')}")
print("leaf and number of intermediates that are presented at first and after three renewals:", *seen, flush=True)
# Neither the library's thread nor the server's ends by itself.
os._exit(0)
PYTHON

same=yes
look() {  # pyOpenSSL's version, and what is presented
  "$1/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -iE '^(spiffe|pyopenssl|grpcio|cryptography)' | paste -sd' ' | tr -s ' '
  timeout 120 "$1/bin/python" scene.py >said 2>log || { cat said log; exit 1; }
  cat said
  grep -om1 'Context has already been used.*' log || true
  grep -q ": $2\$" said || same=no
}
look 26.1.0 'new+1 new+2 new+3 new+4'
look 26.4.0 'new+1 old+1 old+1 old+1'
[ "$same" = yes ] || { echo 'the behaviour has changed'; exit 1; }
