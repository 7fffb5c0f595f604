"""An application that speaks mutual TLS itself, with py-spiffe's X509Source: it calls a server again and again, each
time over a new connection, until it is told to end (SIGTERM).

    application.py HOST:PORT SERVER-ID

It prints what tests/go/workload-api prints.
"""

import http.client
import signal
import ssl
import sys
import tempfile
import threading
import time

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import X509Source

# The time between two calls: what makes a load, and leaves the processor to others.
PAUSE = 0.02


def context(svid, bundle):
    """Python's TLS takes keys from files alone."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The name is a SPIFFE ID, which is looked at after the handshake.
    found.check_hostname = False
    anchors = [authority.public_bytes(Encoding.PEM).decode() for authority in bundle.x509_authorities]
    found.load_verify_locations(cadata="".join(anchors))
    with tempfile.NamedTemporaryFile() as file:
        for certificate in svid.cert_chain:
            file.write(certificate.public_bytes(Encoding.PEM))
        file.write(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        found.load_cert_chain(file.name)
    return found


def call(address, server, tls):
    connection = http.client.HTTPSConnection(address, timeout=10, context=tls)
    try:
        connection.request("GET", "/ip")
        names = connection.sock.getpeercert()["subjectAltName"]
        if ("URI", server) not in names:
            raise ssl.SSLError(f"the server is {names}")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
    finally:
        connection.close()


def main(address, server):
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    calls, failed, held, tls = 0, 0, set(), None
    with X509Source() as source:
        while not told.is_set():
            svid = source.svid
            serial = f"{svid.leaf.serial_number:x}"
            if serial not in held:
                held.add(serial)
                print("certificate", serial, flush=True)
                tls = None
            tls = tls or context(svid, source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain))
            calls += 1
            try:
                call(address, server, tls)
            except (OSError, http.client.HTTPException) as error:
                failed += 1
                print("failed", error, flush=True)
            if calls % 10 == 0:
                print("called", flush=True)
            time.sleep(PAUSE)
    print(f"calls {calls} failed {failed} certificates {len(held)}", flush=True)


main(*sys.argv[1:])
