#!/usr/bin/env bash
# An OpenTelemetry collector, or what else uses its TLS settings, is a client by mutual TLS: ca_file, cert_file and key_file are
# renewed by a sidecar or the kubelet, so reload_interval is set. The CA moves to a new root, with both in ca_file for a while.
#
# Guess:    all three files are read again: the setting stands beside them and is "the duration after which the certificate will
#           be reloaded".
# Happens:  certificate and key are (configtls 1.71.0); ca_file is read once. From the day on which the server's certificate comes
#           from the new root no new connection is possible, although the root has been in the file for as long as one likes.
#           The server's half has a switch for its own, reload_client_ca_file; a client has none.
# Matters:  exporters and scrapers that run for months pass each renewal, and all of them fail at once at the change of the root,
#           with "certificate signed by unknown authority" of a root that is in their file. Restart them after the root has
#           been added, before it is used.
# Source:   go.opentelemetry.io/collector/config/configtls 1.71.0 (Config.loadTLSConfig, certReloader), Go 1.25 or later.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >main.go <<'GO'
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"go.opentelemetry.io/collector/config/configtls"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

type pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// A root, or a certificate of one for localhost.
func issue(name string, issuer *pair) *pair {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, DNSNames: []string{"localhost"}}
	if issuer == nil {
		template.IsCA, template.DNSNames = true, nil
		issuer = &pair{template, key}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, issuer.certificate, &key.PublicKey, issuer.key))
	return &pair{must(x509.ParseCertificate(der)), key}
}

func write(file, kind string, blocks ...[]byte) {
	var text []byte
	for _, block := range blocks {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: block})...)
	}
	// A renewal takes the old file's place, as a sidecar's or the kubelet's does.
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		panic(err)
	}
}

func renew(client *pair, roots ...*pair) {
	var bundle [][]byte
	for _, root := range roots {
		bundle = append(bundle, root.certificate.Raw)
	}
	write("ca.pem", "CERTIFICATE", bundle...)
	write("cert.pem", "CERTIFICATE", client.certificate.Raw)
	write("key.pem", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(client.key)))
}

// One connection of a client with these settings: whom the server saw, or why there was none.
func call(client *tls.Config, server *pair, roots ...*pair) (string, error) {
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root.certificate)
	}
	listener := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.certificate.Raw}, PrivateKey: server.key}}}))
	defer listener.Close()
	seen := make(chan string, 1)
	go func() {
		connection := must(listener.Accept()).(*tls.Conn)
		defer connection.Close()
		if connection.Handshake() != nil {
			seen <- ""
			return
		}
		seen <- connection.ConnectionState().PeerCertificates[0].Subject.CommonName
	}()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}
	connection, err := dialer.Dial("tcp", listener.Addr().String())
	if err == nil {
		defer connection.Close()
	}
	return <-seen, err
}

func main() {
	old, young := issue("old root", nil), issue("new root", nil)
	renew(issue("first", old), old)
	settings := configtls.NewDefaultClientConfig()
	settings.CAFile, settings.CertFile, settings.KeyFile = "ca.pem", "cert.pem", "key.pem"
	settings.ReloadInterval, settings.ServerName = time.Millisecond, "localhost"
	client := must(settings.LoadTLSConfig(context.Background()))

	before, err := call(client, issue("server", old), old)
	fmt.Println("before: the server sees", before, err)
	renew(issue("renewed", old), old, young)
	time.Sleep(10 * settings.ReloadInterval)
	renewed, err := call(client, issue("server", old), old, young)
	fmt.Println("renewed, with both roots in ca_file: the server sees", renewed, err)
	_, refused := call(client, issue("server", young), old, young)
	fmt.Println("the server's certificate is of the new root:", refused)
	restarted, err := call(must(settings.LoadTLSConfig(context.Background())), issue("server", young), old, young)
	fmt.Println("the same after a restart of the client: the server sees", restarted, err)
	if before != "first" || renewed != "renewed" || refused == nil || restarted != "renewed" {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}
GO
printf 'module client\n\ngo 1.25\n' >go.mod
go get go.opentelemetry.io/collector/config/configtls@v1.71.0 2>/dev/null
go build -o client .
go version
echo "configtls $(go list -m -f '{{.Version}}' go.opentelemetry.io/collector/config/configtls)"
timeout 60 ./client
