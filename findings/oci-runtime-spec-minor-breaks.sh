#!/usr/bin/env bash
# runc and containerd as tools of one Go module, so that a test or an image has both at pinned versions.
#
# Guess:    Go takes the higher of two minor versions of what they share, and by semantic versions that builds: containerd
#           2.1 wants runtime-spec v1.2, runc 1.5 wants v1.3.
# Happens:  it does not compile. v1.3.0 of the Go module has made LinuxPids.Limit a pointer (*int64), although no import
#           path has changed: "cannot use limit (variable of type int64) as *int64 value in assignment". Each builds alone.
# Matters:  an upgrade of runc, or of whatever else asks for runtime-spec v1.3, stops containerd in the same module, and so
#           does a client of containerd's in a program that also uses runc's packages. Each gets a module of its own.
# Source:   github.com/containerd/containerd/v2 v2.1.9 (pkg/oci/spec_opts.go), github.com/opencontainers/runtime-spec v1.2.1
#           and v1.3.0 (specs-go/config.go), github.com/opencontainers/runc v1.5.3 (go.mod).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export GOFLAGS=-mod=mod CGO_ENABLED=0 GOTOOLCHAIN=auto
printf 'module finding\n\ngo 1.26.0\n' >go.mod
printf 'package finding\n\nimport _ "github.com/containerd/containerd/v2/pkg/oci"\n' >finding.go

go get github.com/containerd/containerd/v2@v2.1.9 2>get.log || { cat get.log; exit 1; }
spec() { go list -m -f '{{.Version}}' github.com/opencontainers/runtime-spec; }
build() { if go build . 2>build.log; then echo builds; else grep -o 'cannot use .*' build.log; fi; }
alone="$(spec): $(build)"
go get -tool github.com/opencontainers/runc@v1.5.3 2>get.log || { cat get.log; exit 1; }
together="$(spec): $(build)"
echo "containerd 2.1.9 alone, with runtime-spec $alone"
echo "containerd 2.1.9 beside runc 1.5.3, with runtime-spec $together"
[ "$alone" = "v1.2.1: builds" ]
[ "$together" = "v1.3.0: cannot use limit (variable of type int64) as *int64 value in assignment" ]
