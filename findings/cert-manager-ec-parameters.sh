#!/usr/bin/env bash
# The key of a CA made by `openssl ecparam -name prime256v1 -genkey`, as many guides have it, goes into the Secret of a
# cert-manager CA issuer. The file has a block "EC PARAMETERS", which names the curve, before "EC PRIVATE KEY".
#
# Guess:    works. The block is in every such file, the key names its curve itself, and what reads keys skips blocks of
#           another kind: Go's tls.X509KeyPair and OpenSSL do so.
# Happens:  cert-manager 1.21 looks at the first block only, and refuses the file: "unknown private key type: EC PARAMETERS".
#           Without that block, or with `-noout` (which leaves out just this block, and not the key), it reads it.
# Matters:  nginx, Envoy and Go servers take the file, kubectl makes the TLS Secret of it, and the issuer is never ready.
#           The message speaks of the key's type, so that people make an RSA key instead.
# Source:   github.com/cert-manager/cert-manager/pkg/util/pki v1.21.2, whose DecodePrivateKeyBytes reads issuers' keys;
#           Go's crypto/tls; OpenSSL's command.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
openssl version
openssl ecparam -name prime256v1 -genkey -out with.key
openssl req -x509 -key with.key -subj "/CN=a CA" -days 1 -out tls.crt 2>req.log || { cat req.log; exit 1; }
openssl ecparam -name prime256v1 -genkey -noout -out noout.key
sed -n '/BEGIN EC PRIVATE KEY/,$p' with.key >without.key
cat >main.go <<'GO'
package main

import (
	"crypto/tls"
	"fmt"
	"os"

	"github.com/cert-manager/cert-manager/pkg/util/pki"
)

func main() {
	read := func(name string) []byte { text, _ := os.ReadFile(name); return text }
	_, byGo := tls.X509KeyPair(read("tls.crt"), read("with.key"))
	_, whole := pki.DecodePrivateKeyBytes(read("with.key"))
	_, cut := pki.DecodePrivateKeyBytes(read("without.key"))
	_, noout := pki.DecodePrivateKeyBytes(read("noout.key"))
	fmt.Printf("with EC PARAMETERS: Go's tls.X509KeyPair: %v; cert-manager: %v\n", byGo, whole)
	fmt.Printf("cert-manager without that block: %v; of -noout: %v\n", cut, noout)
	if byGo != nil || whole == nil || whole.Error() != "unknown private key type: EC PARAMETERS" || cut != nil || noout != nil {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/cert-manager/cert-manager/pkg/util/pki@v1.21.2 2>/dev/null
go version
go list -m github.com/cert-manager/cert-manager
go run .
