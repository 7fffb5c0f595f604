#!/usr/bin/env bash
# A JWT-SVID is verified with the SPIFFE bundle of its trust domain, which is a JWKS, by an ordinary JWT library.
#
# Guess:    works. The bundle has the key under the token's kid, and RFC 7517 lets `use` have other values than "sig" and
#           "enc", so that a library has no reason to mind "jwt-svid".
# Happens:  PyJWT's client finds "no signing keys" (its JWKS class does load the key), joserfc refuses the set, and
#           jwcrypto and jose for JavaScript find no key. Of those tried python-jose alone verifies the token. With "sig" all do.
# Matters:  a bundle endpoint cannot stand in for jwks_uri; this is what an OIDC discovery provider is for, and the set
#           it serves must have `use` changed or left out. The errors name the key as missing while it is there.
# Source:   the versions pinned below; SPIFFE Trust Domain and Bundle section 4.2.2 demands the values of `use`.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 pyjwt==2.15.1 joserfc==1.8.0 jwcrypto==1.6.1 python-jose==3.5.0
npm install --silent --no-fund --no-audit --ignore-scripts jose@6.2.18 >npm.log 2>&1 || { cat npm.log; exit 1; }
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(pyjwt|joserfc|jwcrypto|python-jose) '
echo "node $(node --version), jose 6.2.18"
cat >verify.mjs <<'JS'
import { readFileSync } from "node:fs";
import { createLocalJWKSet, jwtVerify } from "jose";
const [set, token] = ["set.json", "token"].map((name) => readFileSync(name, "utf8"));
try { console.log((await jwtVerify(token, createLocalJWKSet(JSON.parse(set)), { audience: "us" })).payload.sub); }
catch (error) { console.log(error.message); }
JS

venv/bin/python -W ignore - <<'PYTHON'
import json, subprocess, sys, time
import jwt, joserfc.jwk, joserfc.jwt, jose.jwt, jwcrypto.jwk, jwcrypto.jwt
from cryptography.hazmat.primitives.asymmetric import ec

SUBJECT = "spiffe://example.org/ns/a/sa/b"
key = ec.generate_private_key(ec.SECP256R1())
token = jwt.encode({"sub": SUBJECT, "aud": "us", "exp": int(time.time()) + 300}, key, "ES256", headers={"kid": "one"})
with open("token", "w") as f: f.write(token)

def by_pyjwt(jwks):
    client = jwt.PyJWKClient("http://127.0.0.1:1/")  # never asked: the document is put in its place
    client.fetch_data = lambda: jwks
    return jwt.decode(token, client.get_signing_key_from_jwt(token).key, ["ES256"], audience="us")["sub"]
def by_joserfc(jwks): return joserfc.jwt.decode(token, joserfc.jwk.KeySet.import_key_set(jwks)).claims["sub"]
def by_jwcrypto(jwks): return json.loads(jwcrypto.jwt.JWT(jwt=token, key=jwcrypto.jwk.JWKSet.from_json(json.dumps(jwks)), algs=["ES256"]).claims)["sub"]
def by_python_jose(jwks): return jose.jwt.decode(token, jwks, algorithms=["ES256"], audience="us")["sub"]
def by_jose(jwks):
    with open("set.json", "w") as f: json.dump(jwks, f)
    said = subprocess.run(["node", "verify.mjs"], capture_output=True, text=True).stdout.strip()
    if said != SUBJECT: raise ValueError(said)
    return said

seen = {}
for use in ("sig", "jwt-svid"):
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    jwks = {"keys": [{**public, "kid": "one", "use": use}]}
    for verify in (by_pyjwt, by_joserfc, by_jwcrypto, by_jose, by_python_jose):
        try: seen[use, verify.__name__] = verify(jwks) == SUBJECT; said = "verified"
        except Exception as error: seen[use, verify.__name__] = False; said = f"{type(error).__name__}: {error}"
        print(f"use={use} {verify.__name__}: {said}")
if list(seen.values()) != [True] * 5 + [False] * 4 + [True]:
    sys.exit("the behaviour has changed")
PYTHON
