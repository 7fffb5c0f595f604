#!/bin/sh
# Builds Istio's own CA as tests/go/istio-ca serves it, into target/istio-ca, for the tests of the CA client. Quick when it
# has been built from the same sources. Needs Go, which comes from Debian's packages when it is missing; the modules,
# and a newer Go where tests/go/istio-ca/go.mod wants one, come from Go's module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/istio-ca
directory=$root/target/istio-ca

hash=$(cd "$source" && cat go.mod go.sum ./*.go "$root/tests/testkit/install-istio-ca.sh" | sha256sum | cut -d ' ' -f 1)
if [ -x "$directory/istio-ca" ] && [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
version=$(cd / && go env GOVERSION | sed 's/^go//')

mkdir -p "$directory"
say "building Istio's CA with Go $version (some minutes the first time)"
cd "$source"
export GOFLAGS=-mod=readonly
# Two compilers at a time leave memory for what else runs.
retry go build -p=2 -trimpath -ldflags="-s -w" -tags=disable_pgv \
    -o "$directory/istio-ca.new" . || fail "go build failed in $source; its message is above"
mv -f "$directory/istio-ca.new" "$directory/istio-ca"
echo "$hash" >"$directory/sources"
say "built $directory/istio-ca"
