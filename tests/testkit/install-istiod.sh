#!/bin/sh
# Builds Istio's control plane as target/istiod/pilot-discovery, for the tests that run a mesh of Istio's on a node. Quick
# when it is already there. It is of the same version as Istio's agent (tests/testkit/install-pilot-agent.sh).
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/istiod
version=$(sed -n 's/^version=//p' "$root/tests/testkit/install-pilot-agent.sh")

if [ -x "$directory/pilot-discovery" ] && [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH

mkdir -p "$directory"
say "building istio.io/istio/pilot/cmd/pilot-discovery $version, once; it takes 1 to 5 minutes"
# Two compilers at a time leave memory for what else runs.
export GOBIN="$directory" GOFLAGS="${GOFLAGS:-} -p=2"
retry go install -trimpath -ldflags="-s -w" -tags=disable_pgv "istio.io/istio/pilot/cmd/pilot-discovery@$version" \
    >"$directory/build.log" 2>&1 || { tail -n 20 "$directory/build.log" >&2; fail "go could not build pilot-discovery"; }
echo "$version" >"$directory/version"
say "ready"
