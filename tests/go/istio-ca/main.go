// Serves Istio's own CA, set up as istiod sets it up, for the tests of the CA client.
//
// The first line on standard output is the address that it listens on; then follows one JSON object for each call that
// was answered. Istio's log goes to standard error. It ends on SIGTERM, or when its standard input is closed, so that
// it does not outlive a test that was killed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/pki/ca"
	caserver "istio.io/istio/security/pkg/server/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate"
)

// options are the settings of istiod that matter to its CA.
type options struct {
	cacerts     string
	rootFile    string
	trustDomain string
	jwtRule     string
	serverNames string
	defaultTTL  time.Duration
	maxTTL      time.Duration
}

// istiod's defaults.
const (
	rootTTL = 3650 * 24 * time.Hour
	rsaBits = 2048
)

func main() {
	var o options
	flag.StringVar(&o.cacerts, "cacerts", "", "directory with ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem;\n"+
		"without it the CA signs itself")
	flag.StringVar(&o.rootFile, "root-file", "", "where to write the roots before anything is printed")
	flag.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "trust domain of the identities that tokens prove")
	flag.StringVar(&o.jwtRule, "jwt-rule", "", "what tokens are verified by: JSON, as in istiod's variable JWT_RULE")
	flag.StringVar(&o.serverNames, "server-names", "istiod.istio-system.svc", "DNS names of the server, comma separated")
	flag.DurationVar(&o.defaultTTL, "default-ttl", 24*time.Hour, "lifetime for those who ask for none")
	flag.DurationVar(&o.maxTTL, "max-ttl", 90*24*time.Hour, "longest lifetime that may be asked for")
	flag.Parse()
	if err := serve(o); err != nil {
		fmt.Fprintln(os.Stderr, "istio-ca:", err)
		os.Exit(1)
	}
}

func serve(o options) error {
	over, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	authority, err := newCA(o)
	if err != nil {
		return err
	}
	if o.rootFile != "" {
		if err := os.WriteFile(o.rootFile, authority.GetCAKeyCertBundle().GetRootCertPem(), 0o600); err != nil {
			return err
		}
	}
	authenticators, err := newAuthenticators(o)
	if err != nil {
		return err
	}
	config, err := tlsConfig(authority, o)
	if err != nil {
		return err
	}
	// No controller: it is for the node proxies of ambient mode, which ask in the name of others.
	service, err := caserver.New(authority, o.maxTTL, authenticators, nil)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	calls := recorder{out: json.NewEncoder(os.Stdout)}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.UnaryInterceptor(calls.record))
	service.Register(server)
	fmt.Println(listener.Addr())
	context.AfterFunc(over, server.Stop)
	return server.Serve(listener)
}

// newCA takes the files that istiod finds in its secret cacerts; without them it does as istiod does.
func newCA(o options) (*ca.IstioCA, error) {
	settings, err := settingsOfCA(o)
	if err != nil {
		return nil, err
	}
	return ca.NewIstioCA(settings)
}

func settingsOfCA(o options) (*ca.IstioCAOptions, error) {
	if o.cacerts == "" {
		return ca.NewSelfSignedDebugIstioCAOptions("", rootTTL, o.defaultTTL, o.maxTTL, o.trustDomain, rsaBits)
	}
	file := func(name string) string { return o.cacerts + "/" + name }
	files := ca.SigningCAFileBundle{
		RootCertFile:    file(ca.RootCertFile),
		CertChainFiles:  []string{file(ca.CertChainFile)},
		SigningCertFile: file(ca.CACertFile),
		SigningKeyFile:  file(ca.CAPrivateKeyFile),
	}
	return ca.NewPluggedCertIstioCAOptions(files, o.defaultTTL, o.maxTTL, rsaBits)
}

// newAuthenticators has istiod's order: who presents a certificate is who it names, whatever the token says.
func newAuthenticators(o options) ([]security.Authenticator, error) {
	byToken, err := tokenAuthenticator(o)
	if err != nil {
		return nil, err
	}
	return []security.Authenticator{&authenticate.ClientCertAuthenticator{}, byToken}, nil
}
