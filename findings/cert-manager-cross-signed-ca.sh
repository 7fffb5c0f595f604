#!/usr/bin/env bash
# A CA is moving to a new root: with leaf and intermediate it answers its self-signed root, and the same root
# cross-signed by the new one. What does cert-manager store as ca.crt?
#
# Guess:    the self-signed root, as without the cross certificate: it is what peers trust. Or the set is refused as no
#           single chain. In any case the same for each CA that answers so, or by the order of the answer.
# Happens:  with cert-manager 1.21's ParseSingleCertificateChain it is chance. It sorts the certificates by their bytes, in
#           which lengths and serial numbers come first, and joins them in that order: some sets are refused as "malformed
#           or broken"; of the others it drops the self-signed root without a word, and the cross certificate,
#           which is not self-signed, becomes the CA. The order of the answer changes nothing.
# Matters:  a rehearsal of the root's rotation says nothing on the real one: new serial numbers are drawn. Where it is
#           not refused, who mounts ca.crt has no root in it: Go, and Envoy with its partial chains, can still verify,
#           OpenSSL with its defaults says "unable to get issuer certificate".
# Source:   github.com/cert-manager/cert-manager/pkg/util/pki v1.21.2, pyOpenSSL 26.4.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >main.go <<'GO'
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/cert-manager/cert-manager/pkg/util/pki"
)

func newKey() *ecdsa.PrivateKey {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return key
}

func certificate(subject string, key *ecdsa.PrivateKey, issuer string, issuerKey *ecdsa.PrivateKey) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: subject}, IsCA: subject != "leaf",
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: issuer}}, &key.PublicKey, issuerKey)
	if err != nil {
		panic(err)
	}
	made, _ := x509.ParseCertificate(der)
	return made
}

func main() {
	outcomes := map[string]int{}
	for generation := 0; generation < 200; generation++ {
		oldKey, newRootKey, caKey, key := newKey(), newKey(), newKey(), newKey()
		root := certificate("old root", oldKey, "old root", oldKey)
		cross := certificate("old root", oldKey, "new root", newRootKey)
		intermediate := certificate("intermediate", caKey, "old root", oldKey)
		leaf := certificate("leaf", key, "intermediate", caKey)
		outcome := parsed(root, cross, leaf, intermediate, root, cross)
		if again := parsed(root, cross, leaf, intermediate, cross, root); again != outcome {
			outcome += ", then " + again
		}
		if without := parsed(root, cross, leaf, intermediate, root); without != "ca.crt is the self-signed root" {
			outcome = "without the cross certificate: " + without
		}
		outcomes[outcome]++
		os.WriteFile("root.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600)
		os.WriteFile("cross.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cross.Raw}), 0o600)
		bundle, _ := pki.ParseSingleCertificateChain([]*x509.Certificate{leaf, intermediate})
		os.WriteFile("tls.crt", bundle.ChainPEM, 0o600)
	}
	fmt.Println("200 CAs, each with its root, a cross certificate for it, an intermediate and a leaf:", outcomes)
	if outcomes["refused"] == 0 || outcomes["ca.crt is the cross certificate"] == 0 || len(outcomes) != 2 {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}

func parsed(root, cross *x509.Certificate, answer ...*x509.Certificate) string {
	bundle, err := pki.ParseSingleCertificateChain(answer)
	if err != nil {
		return "refused"
	}
	switch ca, _ := pki.DecodeX509CertificateBytes(bundle.CAPEM); {
	case ca.Equal(root):
		return "ca.crt is the self-signed root"
	case ca.Equal(cross):
		return "ca.crt is the cross certificate"
	}
	return "ca.crt is something else"
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/cert-manager/cert-manager/pkg/util/pki@v1.21.2 2>/dev/null
go version
go list -m github.com/cert-manager/cert-manager
go run .

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 pyopenssl==26.4.0
venv/bin/python - <<'PYTHON'
import sys
from OpenSSL import SSL, crypto
from cryptography import x509

print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
chain = [crypto.X509.from_cryptography(c) for c in x509.load_pem_x509_certificates(open("tls.crt", "rb").read())]
said = []
for ca in ("root.crt", "cross.crt"):
    store = crypto.X509Store()
    store.load_locations(ca)
    try: crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate(); said.append("verified")
    except crypto.X509StoreContextError as error: said.append(str(error))
    print(f"a chain of the last of them, by {ca} alone: {said[-1]}")
if said != ["verified", "unable to get issuer certificate"]:
    sys.exit("the behaviour has changed")
PYTHON
