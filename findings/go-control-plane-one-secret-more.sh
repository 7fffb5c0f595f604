#!/usr/bin/env bash
# A control plane with go-control-plane's snapshot cache serves secrets over one aggregated stream (ADS). A proxy has asked for
# "default". A snapshot renews that, and brings a secret that the proxy does not ask for (yet); the next snapshot is without it.
#
# Guess:    the proxy gets the renewed "default": a response has those resources that were asked for, as without ADS. If a secret
#           too many holds it up, then for as long as it is in the snapshot.
# Happens:  with go-control-plane 0.14 in its ADS mode and the protocol's state of the world form the renewal is not sent. The
#           cache gives up the proxy's watch with it, and so the next snapshots, without the other secret, are not sent either. SetSnapshot
#           returns no error, and the stream stays open. By the delta form each renewal arrives.
# Matters:  a secret that is laid ready for tomorrow's listener stops the renewals of those in use, and to take it out again does not
#           mend it: the proxy serves with what it has until that expires or the stream ends. The only word is a warning, in a
#           logger that is optional. Give the proxy's snapshot those secrets alone that its listeners and clusters name, or use delta.
# Source:   github.com/envoyproxy/go-control-plane v0.14.0 (snapshotCache.respond; NewSnapshotCache tells of a delay), on a Unix
#           socket.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func secret(name, version string) types.Resource {
	chain := &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: version}}
	return &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{CertificateChain: chain}}}
}

// stream asks for "default" as a proxy does, acknowledges what comes, and tells the versions.
func stream(ctx context.Context, client discovery.AggregatedDiscoveryServiceClient, form string, versions chan<- string) {
	node := &core.Node{Id: "proxy", Cluster: "proxy"}
	if form == "delta" {
		s := must(client.DeltaAggregatedResources(ctx))
		request := &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{"default"}}
		for s.Send(request) == nil {
			response, err := s.Recv()
			if err != nil {
				return
			}
			for _, r := range response.Resources {
				var got tls.Secret
				if err := r.Resource.UnmarshalTo(&got); err != nil {
					panic(err)
				}
				versions <- got.GetTlsCertificate().CertificateChain.GetInlineString()
			}
			request = &discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: response.Nonce}
		}
		return
	}
	s := must(client.StreamAggregatedResources(ctx))
	request := &discovery.DiscoveryRequest{Node: node, TypeUrl: resource.SecretType, ResourceNames: []string{"default"}}
	for s.Send(request) == nil {
		response, err := s.Recv()
		if err != nil {
			return
		}
		for _, r := range response.Resources {
			var got tls.Secret
			if err := r.UnmarshalTo(&got); err != nil {
				panic(err)
			}
			versions <- got.GetTlsCertificate().CertificateChain.GetInlineString()
		}
		request = &discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{"default"},
			VersionInfo: response.VersionInfo, ResponseNonce: response.Nonce}
	}
}

// watches tells for how many responses of the future the cache holds this proxy ready.
func watches(snapshots cache.SnapshotCache) int {
	info := snapshots.GetStatusInfo("proxy")
	if info == nil {
		return 0
	}
	return info.GetNumWatches() + info.GetNumDeltaWatches()
}

func run(ads bool, form string) ([]string, int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	snapshots := cache.NewSnapshotCache(ads, cache.IDHash{}, nil)
	set := func(version string, others ...string) {
		secrets := []types.Resource{secret("default", version)}
		for _, other := range others {
			secrets = append(secrets, secret(other, version))
		}
		snapshot := must(cache.NewSnapshot(version, map[resource.Type][]types.Resource{resource.SecretType: secrets}))
		if err := snapshots.SetSnapshot(ctx, "proxy", snapshot); err != nil {
			panic(err)
		}
	}
	set("first")

	os.Remove("socket")
	listener := must(net.Listen("unix", "socket"))
	s := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(s, server.NewServer(ctx, snapshots, nil))
	go s.Serve(listener)
	defer s.Stop()
	connection := must(grpc.NewClient("unix:socket", grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer connection.Close()
	versions := make(chan string, 10)
	go stream(ctx, discovery.NewAggregatedDiscoveryServiceClient(connection), form, versions)

	var seen []string
	next := func() {
		select {
		case version := <-versions:
			seen = append(seen, version)
		case <-time.After(3 * time.Second):
			seen = append(seen, "nothing")
		}
		// The acknowledgement asks for what comes next, and is a watch of the cache.
		for end := time.Now().Add(3 * time.Second); watches(snapshots) == 0 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	next()
	set("second", "tomorrow's")
	next()
	set("third")
	next()
	set("fourth")
	next()
	return seen, watches(snapshots)
}

func main() {
	all := []string{"first", "second", "third", "fourth"}
	changed := false
	for _, c := range []struct {
		ads      bool
		form     string
		expected []string
		left     int
	}{
		{true, "state of the world", []string{"first", "nothing", "nothing", "nothing"}, 0},
		{true, "delta", all, 1},
		{false, "state of the world", all, 1},
	} {
		seen, left := run(c.ads, c.form)
		fmt.Printf("ads %v, %s: %s; watches of the proxy at the end: %d\n", c.ads, c.form, strings.Join(seen, ", "), left)
		changed = changed || !slices.Equal(seen, c.expected) || left != c.left
	}
	if changed {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}
GO
(go mod init example.org/finding && go get github.com/envoyproxy/go-control-plane@v0.14.0 && go mod tidy && go build -o finding .) >go.log 2>&1 || { cat go.log; exit 1; }
go version -m finding | grep -E 'envoyproxy/go-control-plane|grpc	' | cut -f 3,4
timeout 60 ./finding
