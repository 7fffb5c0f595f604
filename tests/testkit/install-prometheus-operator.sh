#!/bin/sh
# Builds the Prometheus operator and its config-reloader, as tests/go/prometheus-operator/go.mod names them, and a Prometheus
# that knows Kubernetes, as tests/go/prometheus/go.mod does, into target/prometheus-operator, for the test with a Prometheus
# on a node, and puts the operator's kinds of object beside them. Quick when they have been made from the same sources. Needs
# Go, which comes from Debian's packages when it is missing; the modules come from Go's module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
operator=$root/tests/go/prometheus-operator
prometheus=$root/tests/go/prometheus
directory=$root/target/prometheus-operator

hash=$(cat "$operator/go.mod" "$operator/go.sum" "$prometheus/go.mod" "$prometheus/go.sum" \
    "$root/tests/testkit/install-prometheus-operator.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
export GOFLAGS=-mod=readonly
module=github.com/prometheus-operator/prometheus-operator
say "building Prometheus $(sed -n 's|^\tgithub.com/prometheus/prometheus \([^ ]*\).*|\1|p' "$prometheus/go.mod") and its operator" \
    "$(sed -n "s|^\t$module \([^ ]*\).*|\1|p" "$operator/go.mod") (some minutes)"
started=$(date +%s)
rm -rf "$directory.new"
mkdir -p "$directory.new/kinds"
for source in "$operator" "$prometheus"; do
    cd "$source"
    retry go mod download || fail "could not download the modules of $source/go.mod; go's message is above"
    # Of all places in which Prometheus looks for what it scrapes, only this one. Two compilers at a time leave memory for
    # what else runs.
    go build -p=2 -trimpath -tags remove_all_sd,enable_kubernetes_sd -ldflags="-s -w" -o "$directory.new/" tool \
        || fail "go build failed in $source; its message is above"
done
cd "$operator"
from=$(go list -m -f '{{.Dir}}' "$module")
cp "$from"/example/prometheus-operator-crd/monitoring.coreos.com_*.yaml "$directory.new/kinds" || fail "$module has no kinds"
chmod -R u+w "$directory.new"
rm -rf "$directory"
mv "$directory.new" "$directory"
echo "$hash" >"$directory/sources"
say "built $directory in $(($(date +%s) - started)) s"
