package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/api/security/v1beta1"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/security"
	"istio.io/istio/pkg/spiffe"
	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate"
)

// fixedMesh is a mesh configuration that never changes.
type fixedMesh struct {
	trustDomain string
}

func (m fixedMesh) Mesh() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{TrustDomain: m.trustDomain}
}

func (fixedMesh) AddMeshHandler(func()) *mesh.WatcherHandlerRegistration {
	return mesh.NewWatcherHandlerRegistration(func() {})
}

func (fixedMesh) DeleteMeshHandler(*mesh.WatcherHandlerRegistration) {}

func tokenAuthenticator(o options) (security.Authenticator, error) {
	rule := &v1beta1.JWTRule{}
	if err := json.Unmarshal([]byte(o.jwtRule), rule); err != nil {
		return nil, fmt.Errorf("-jwt-rule: %w", err)
	}
	return authenticate.NewJwtAuthenticator(rule, fixedMesh{o.trustDomain})
}

// tlsConfig is that of istiod's secured port: a certificate from the CA itself, and client certificates are verified
// when they are given.
func tlsConfig(authority *ca.IstioCA, o options) (*tls.Config, error) {
	chain, key, err := authority.GenKeyCert(strings.Split(o.serverNames, ","), o.maxTTL, false)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	verifier := spiffe.NewPeerCertVerifier()
	if err := verifier.AddMappingFromPEM(o.trustDomain, authority.GetCAKeyCertBundle().GetRootCertPem()); err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates:          []tls.Certificate{certificate},
		ClientAuth:            tls.VerifyClientCertIfGiven,
		ClientCAs:             verifier.GetGeneralCertPool(),
		VerifyPeerCertificate: verifier.VerifyPeerCert,
		MinVersion:            tls.VersionTLS12,
	}, nil
}
