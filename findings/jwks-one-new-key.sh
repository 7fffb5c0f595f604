#!/usr/bin/env bash
# An issuer puts the first ML-DSA key (kty "AKP") into its JWKS, beside the EC key that still signs every token.
#
# Guess:    nobody notices. RFC 7517 section 5 has implementations ignore keys of a kind that they do not understand, and
#           each token names the EC key by its kid.
# Happens:  go-jose, jwx and keyfunc, which most Go services use, refuse the whole set for it. So does go-spiffe with a trust
#           bundle, whose X.509 roots are lost with it. PyJWT, joserfc and jose for JavaScript skip the key.
# Matters:  the trial of a post-quantum key, which signs nothing yet, ends the verification of every token in Go (Kubernetes,
#           SPIRE and cert-manager are written in it), and X.509 federation too, while Python and Node services are
#           content. Publish the key under another address first, or only once all readers have been seen to skip it.
# Source:   the versions pinned below.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 pyjwt==2.15.1 joserfc==1.8.0
npm install --silent --no-fund --no-audit --ignore-scripts jose@6.2.18 >npm.log 2>&1 || { cat npm.log; exit 1; }

venv/bin/python - <<'PYTHON'
import base64, datetime, json, time
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa

def text(data): return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
def point(key):
    n = key.public_key().public_numbers()
    return {"kty": "EC", "crv": "P-256", "x": text(n.x.to_bytes(32, "big")), "y": text(n.y.to_bytes(32, "big"))}

key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
usual = {**point(key), "kid": "usual", "alg": "ES256"}
new = {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": text(mldsa.MLDSA44PrivateKey.generate().public_key().public_bytes_raw())}
now = datetime.datetime.now(datetime.timezone.utc)
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
root = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(root_key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), True).sign(root_key, hashes.SHA256()))
anchor = {**point(root_key), "use": "x509-svid", "x5c": [base64.b64encode(root.public_bytes(serialization.Encoding.DER)).decode()]}
for file, keys in {"before": [usual], "after": [usual, new]}.items():
    json.dump({"keys": [{**k, "use": "sig"} for k in keys]}, open(f"{file}.json", "w"))
    json.dump({"keys": [anchor] + [{**k, "use": "jwt-svid"} for k in keys]}, open(f"{file}.bundle", "w"))
pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
open("token", "w").write(jwt.encode({"sub": "spiffe://td/a", "aud": "us", "exp": int(time.time()) + 600}, pem, "ES256", {"kid": "usual"}))
PYTHON

cat >others.py <<'PYTHON'
import json, sys
import joserfc.jwk, joserfc.jwt, jwt

token, keys = open("token").read(), json.load(open(sys.argv[1] + ".json"))
print("PyJWT:", jwt.decode(token, jwt.PyJWKSet.from_dict(keys)["usual"], ["ES256"], audience="us")["sub"])
print("joserfc:", joserfc.jwt.decode(token, joserfc.jwk.KeySet.import_key_set(keys), ["ES256"]).claims["sub"])
PYTHON
cat >others.mjs <<'JS'
import { readFileSync } from "node:fs";
import { createLocalJWKSet, jwtVerify } from "jose";
const [set, token] = [process.argv[2] + ".json", "token"].map((name) => readFileSync(name, "utf8"));
console.log("jose:", (await jwtVerify(token, createLocalJWKSet(JSON.parse(set)), { audience: "us" })).payload.sub);
JS
mkdir go
cat >go/main.go <<'GO'
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/go-jose/go-jose/v4"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func main() {
	set, _ := os.ReadFile(os.Args[1] + ".json")
	bundle, _ := os.ReadFile(os.Args[1] + ".bundle")
	said := func(who string, err error, found func() string) {
		if err != nil {
			fmt.Printf("%s: refused (%.100q)\n", who, err.Error())
		} else {
			fmt.Printf("%s: %s\n", who, found())
		}
	}
	var jose jose.JSONWebKeySet
	err := json.Unmarshal(set, &jose)
	said("go-jose", err, func() string { return fmt.Sprint(len(jose.Key("usual")), " key of that kid") })
	read, err := jwk.Parse(set)
	said("jwx", err, func() string { _, is := read.LookupKeyID("usual"); return fmt.Sprint("key of that kid: ", is) })
	_, err = keyfunc.NewJWKSetJSON(set)
	said("keyfunc", err, func() string { return "read" })
	spiffe, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("td"), bundle)
	said("go-spiffe", err, func() string {
		return fmt.Sprint(len(spiffe.X509Authorities()), " root, ", len(spiffe.JWTAuthorities()), " JWT key")
	})
}
GO
(cd go && go mod init example.org/finding && go get github.com/go-jose/go-jose/v4@v4.1.9 github.com/spiffe/go-spiffe/v2@v2.9.0 \
  github.com/lestrrat-go/jwx/v3@v3.4.0 github.com/MicahParks/keyfunc/v3@v3.9.2 && go mod tidy && go build -o ../with-go .) >go.log 2>&1 || { cat go.log; exit 1; }
(cd go && go list -m github.com/go-jose/go-jose/v4 github.com/spiffe/go-spiffe/v2 github.com/lestrrat-go/jwx/v3 github.com/MicahParks/keyfunc/v3)
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(pyjwt|joserfc|cryptography) '

for set in before after; do
  { venv/bin/python others.py "$set"; node others.mjs "$set"; ./with-go "$set"; } | tee "$set.said" | sed "s/^/$set the new key, /"
done
verified=$(grep -c 'spiffe://td/a$' before.said after.said | tr '\n' ' ')
refused=$(grep -c ': refused' before.said after.said | tr '\n' ' ')
if [ "$verified$refused" != "before.said:3 after.said:3 before.said:0 after.said:4 " ]; then
  echo "the behaviour has changed: $verified$refused"
  exit 1
fi
