#!/usr/bin/env bash
# A root certificate has expired, and is still among the trust anchors that a client is given. A server's certificate under it
# is valid for days to come, as where a CA went on issuing past its root's end.
#
# Guess:    every client refuses the server: a chain is as good as each of its certificates, and all libraries look at all of them.
# Happens:  OpenSSL 3, Go 1.26 and Python's cryptography refuse it. Java 17 (PKIX, the trust manager that HTTPS has by default)
#           and rustls (webpki 0.103) accept it: to them an anchor is a name with a key, whose dates are not looked at (RFC 5280,
#           section 6.1.1, has no dates in a trust anchor either).
# Matters:  on the day after the root's end half of a fleet works and half does not, by language, and whoever tests with Java or
#           Rust sees a healthy CA. Renew a root, or add its successor, before its own notAfter, whatever clients have said so far.
# Source:   OpenSSL of the system, Go 1.24 or later, Java 17, rustls-webpki 0.103.17, cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.datetime.now(datetime.timezone.utc)
root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
named = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

def write(file, subject, key, ca, days):
    start, end = (NOW + datetime.timedelta(days=n) for n in days)
    b = (x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named("root")).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
         .add_extension(x509.BasicConstraints(ca, None), True)
         .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
         .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False))
    if not ca:
        b = (b.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
              .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False))
    with open(file, "wb") as f: f.write(b.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

write("valid.pem", "root", root_key, True, (-10, 5))
write("expired.pem", "root", root_key, True, (-10, -1))
write("leaf.pem", "leaf", leaf_key, False, (-2, 2))
PYTHON

cat >verify.py <<'PYTHON'
import sys
from cryptography import x509
from cryptography.x509 import verification

def read(file):
    with open(file, "rb") as f: return x509.load_pem_x509_certificates(f.read())

store = verification.Store(read(sys.argv[1]))
verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("localhost")).verify(read("leaf.pem")[0], [])
PYTHON
cat >Verify.java <<'JAVA'
import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.*;
import javax.net.ssl.*;

public class Verify {
    public static void main(String[] file) throws Exception {
        var factory = CertificateFactory.getInstance("X.509");
        var anchors = KeyStore.getInstance("PKCS12");
        anchors.load(null, null);
        anchors.setCertificateEntry("root", factory.generateCertificate(new FileInputStream(file[0])));
        var trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(anchors);
        var leaf = (X509Certificate) factory.generateCertificate(new FileInputStream("leaf.pem"));
        ((X509TrustManager) trust.getTrustManagers()[0]).checkServerTrusted(new X509Certificate[] {leaf}, "ECDHE_ECDSA");
    }
}
JAVA
javac Verify.java
cat >main.go <<'GO'
package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
)

func read(file string) *x509.Certificate {
	text, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	block, _ := pem.Decode(text)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic(err)
	}
	return certificate
}

func main() {
	anchors := x509.NewCertPool()
	anchors.AddCert(read(os.Args[1]))
	if _, err := read("leaf.pem").Verify(x509.VerifyOptions{Roots: anchors, DNSName: "localhost"}); err != nil {
		println(err.Error())
		os.Exit(1)
	}
}
GO
printf 'module verify\n\ngo 1.24\n' >go.mod && go build -o with-go .
mkdir -p src
cat >Cargo.toml <<'TOML'
[package]
name = "verify"
version = "0.1.0"
edition = "2024"

[dependencies]
rustls-webpki = { version = "=0.103.17", features = ["ring", "std"] }
rustls-pki-types = { version = "1", features = ["std"] }
TOML
cat >src/main.rs <<'RUST'
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

fn main() {
    let root = CertificateDer::from_pem_file(std::env::args().nth(1).unwrap()).unwrap();
    let leaf = CertificateDer::from_pem_file("leaf.pem").unwrap();
    let (anchor, leaf) = (anchor_from_trusted_cert(&root).unwrap(), EndEntityCert::try_from(&leaf).unwrap());
    leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &[anchor], &[], UnixTime::now(), KeyUsage::server_auth(), None, None).unwrap();
}
RUST
cargo build --quiet >cargo.log 2>&1 || { cat cargo.log; exit 1; }
openssl version; go version; java -version 2>&1 | head -n 1; cargo tree --depth 1 --edges normal | grep webpki

same=yes
look() {  # what verifies, whether it takes the expired root, its command without the root
  what=$1 expected=$2; shift 2
  "$@" valid.pem >said 2>&1 || { echo "$what refuses the valid root: $(tail -n 1 said)"; exit 1; }
  if "$@" expired.pem >said 2>&1; then seen=accepted; else seen="refused: $(grep -iE 'expired|not valid' said | head -n 1)"; fi
  echo "$what: $seen"
  case $seen in "$expected"*) ;; *) same=no ;; esac
}
by_openssl() { openssl verify -CAfile "$1" leaf.pem; }
look OpenSSL refused: by_openssl
look Go refused: ./with-go
look cryptography refused: venv/bin/python verify.py
look Java accepted java -cp . Verify
look rustls accepted target/debug/verify
[ "$same" = yes ] || { echo 'the behaviour has changed'; exit 1; }
