#!/bin/sh
# Builds Istio's own agent as target/pilot-agent/pilot-agent, with the bootstrap template that it wants, for the tests
# that run it beside the shim. Quick when it is already there. PILOT_AGENT_DIR names another directory.
set -eu

version=v0.0.0-20260827124520-eed52ebb66ad
root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${PILOT_AGENT_DIR:-$root/target/pilot-agent}

if [ -x "$directory/pilot-agent" ] && [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH

mkdir -p "$directory"
say "building istio.io/istio/pilot/cmd/pilot-agent $version, once; it takes 1 to 5 minutes and some 1.5 GB for modules and cache"
export GOBIN="$directory" GOFLAGS="${GOFLAGS:-} -p=2"
retry go install -tags=agent,disable_pgv "istio.io/istio/pilot/cmd/pilot-agent@$version" \
    >"$directory/build.log" 2>&1 || { tail -n 20 "$directory/build.log" >&2; fail "go could not build pilot-agent"; }
module=$(go mod download -json "istio.io/istio@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
[ -n "$module" ] || fail "the sources of Istio are not where Go has them"
install -m 644 "$module/tools/packaging/common/envoy_bootstrap.json" "$directory/envoy_bootstrap_tmpl.json" \
    || fail "the module has no bootstrap template"
echo "$version" >"$directory/version"
say "ready"
