#!/bin/sh
# Builds Istio's own injector as tests/go/istio-injector runs it, and copies Istio's charts, into target/istio-injector, for
# the tests of our chart. Quick when it has been built from the same sources. Needs Go, which comes from Debian's
# packages when it is missing; the modules, and a newer Go where tests/go/istio-injector/go.mod wants one, come from Go's
# module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/istio-injector
directory=$root/target/istio-injector

hash=$(cd "$source" && cat go.mod go.sum ./*.go "$root/tests/testkit/install-istio-injector.sh" | sha256sum | cut -d ' ' -f 1)
if [ -x "$directory/istio-injector" ] && [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
version=$(cd / && go env GOVERSION | sed 's/^go//')

mkdir -p "$directory"
say "building Istio's injector with Go $version (some minutes the first time)"
cd "$source"
export GOFLAGS=-mod=readonly
# Two compilers at a time leave memory for what else runs.
retry go build -p=2 -trimpath -ldflags="-s -w" -tags=disable_pgv \
    -o "$directory/istio-injector.new" . || fail "go build failed in $source; its message is above"
module=$(go list -m -f '{{.Dir}}' istio.io/istio) || fail "the sources of Istio are not where Go has them"
rm -rf "$directory/istiod" "$directory/base"
cp -r "$module/manifests/charts/istio-control/istio-discovery" "$directory/istiod"
cp -r "$module/manifests/charts/base" "$directory/base"
# Go keeps its modules read-only.
chmod -R u+w "$directory/istiod" "$directory/base"
mv -f "$directory/istio-injector.new" "$directory/istio-injector"
echo "$hash" >"$directory/sources"
say "built $directory/istio-injector"
