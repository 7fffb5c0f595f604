#!/usr/bin/env bash
# What a TLS client of OpenSSL offers by itself, before and after the step from 3.5 to 4.0: no group is configured anywhere.
#
# Guess:    the same list, or one more hybrid at its end. 3.5 brought X25519MLKEM768 in front of the classical groups, and a program
#           that writes the default out, to send one key share instead of two for instance, goes on with 4.0 as before.
# Happens:  4.0 offers two more hybrids before every classical group, SecP256r1MLKEM768 and curveSM2MLKEM768, and curveSM2 behind
#           them: China's curve, in each ClientHello of each program that configures nothing. Key shares are those of 3.5.
# Matters:  a list that was copied from 3.5 takes hybrids away from the client, and one from 4.0 offers SM2 for good. What watches
#           for the groups that it knows, such as a policy or a fingerprint of the mesh's clients, sees other clients after an
#           update of a base image. A server that prefers SecP256r1MLKEM768 can ask for it now, at the price of a round trip.
# Source:   OpenSSL 3.5.6 and 4.0.3 in the wheels of cryptography 46.0.7 and 50.0.2, by pyOpenSSL 25.3.0 and 26.4.0; numbers from
#           IANA's registry of TLS supported groups, SM2's by RFC 8998.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >hello.py <<'PYTHON'
from cryptography.hazmat.backends.openssl import backend
from OpenSSL import SSL

NAMES = {0x11EC: "X25519MLKEM768", 0x11EB: "SecP256r1MLKEM768", 0x11EE: "curveSM2MLKEM768", 0x1D: "X25519", 0x1E: "X448", 0x17: "P-256", 0x18: "P-384",
         0x19: "P-521", 0x29: "curveSM2", 0x100: "ffdhe2048", 0x101: "ffdhe3072"}

client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
client.set_connect_state()
try:
    client.do_handshake()
except SSL.WantReadError:
    pass
hello = client.bio_read(1 << 16)[5:]
number = lambda at: int.from_bytes(hello[at : at + 2], "big")
at = 4 + 2 + 32
at += 1 + hello[at]
at += 2 + number(at)
at += 1 + hello[at] + 2
groups, shares = [], []
while at < len(hello):
    kind, end, inside = number(at), at + 4 + number(at + 2), at + 6
    while kind in (10, 51) and inside < end:
        (groups if kind == 10 else shares).append(NAMES.get(number(inside), hex(number(inside))))
        inside += 2 if kind == 10 else 4 + number(inside + 2)
    at = end
print(" ".join(backend.openssl_version_text().split()[:2]))
print("groups:", " ".join(groups))
print("shares:", " ".join(shares))
PYTHON
hello() {
  python3 -m venv "$1"
  "$1/bin/pip" install --quiet --disable-pip-version-check "cryptography==$1" "pyopenssl==$2"
  "$1/bin/python" hello.py
}
old=$(hello 46.0.7 25.3.0)
new=$(hello 50.0.2 26.4.0)
printf '%s\n\n%s\n' "$old" "$new"

shares="shares: X25519MLKEM768 X25519"
[ "$old" = "OpenSSL 3.5.6
groups: X25519MLKEM768 X25519 P-256 X448 P-384 P-521 ffdhe2048 ffdhe3072
$shares" ] && [ "$new" = "OpenSSL 4.0.3
groups: X25519MLKEM768 SecP256r1MLKEM768 curveSM2MLKEM768 X25519 P-256 X448 P-384 P-521 curveSM2 ffdhe2048 ffdhe3072
$shares" ] || { echo "the behaviour has changed" >&2; exit 1; }
