#!/bin/sh
# Builds etcd, Kubernetes' programs, a cluster DNS and helm, as tests/go/kubernetes/go.mod names them, into target/kubernetes,
# for the tests against a real API server and on a real node, and puts beside them the kinds of object that Istio and the
# Prometheus operator bring into a cluster. Quick when all of it has been made from the same sources. Needs Go, which
# comes from Debian's packages when it is missing; the modules, and a newer Go where go.mod wants one, come from Go's
# module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/kubernetes
directory=$root/target/kubernetes
# Where the kinds of the Prometheus operator are from. Its module is no requirement of ours, so the files have digests.
operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
operator_kinds="
8ce88c52c51209993511cae093089c9525f5552def88119e3f559123ee9d454b  monitoring.coreos.com_podmonitors.yaml
98fd16c9ab79fba8dcd6ef62c957c98cd6546ab74ce0a4ecf09ddf2fda03020e  monitoring.coreos.com_prometheusrules.yaml"
# What the first build leaves behind at most, modules and compiled packages together, in MB.
needed=5000

istio=$root/tests/go/istio-ca
hash=$(cd "$source" && cat go.mod go.sum ./*.go "$istio/go.sum" "$root/tests/testkit/install-kubernetes.sh" \
    | sha256sum | cut -d ' ' -f 1)
if [ -x "$directory/helm" ] && [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
version=$(cd / && go env GOVERSION | sed 's/^go//')

kubernetes=$(sed -n 's/^\tk8s.io\/kubernetes //p' "$source/go.mod")
helm=$(sed -n 's/^\thelm.sh\/helm\/v3 \([^ ]*\).*/\1/p' "$source/go.mod")
minor=$(echo "$kubernetes" | cut -d . -f 2)
# The versions that the programs give as their own; without them Helm and the API server tell of no release.
versions="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=1
    -X k8s.io/component-base/version.gitMinor=$minor -X helm.sh/helm/v3/internal/version.version=$helm"

mkdir -p "$directory"
free=$(df -Pm "$directory" | awk 'NR == 2 { print $4 }')
[ "$free" -gt "$needed" ] || say "only $free MB are free here; the first build may need $needed"
say "building Kubernetes $kubernetes and Helm $helm with Go $version (the first time a quarter of an hour and more)"
cd "$source"
export GOFLAGS=-mod=readonly
started=$(date +%s)
retry go mod download || fail "could not download the modules of $source/go.mod; go's message is above"
rm -rf "$directory/new"
# Where the module $1 lies, as the go.mod of this directory or its own version names it.
module() {
    retry go mod download "$1" >&2 || fail "could not download the module $1; go's message is above"
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}
mkdir -p "$directory/new/kinds"
from=$(module "$operator")
cd "$from/example/prometheus-operator-crd" || fail "the module $operator has no kinds"
echo "$operator_kinds" | sed 1d | sha256sum --check --quiet - || fail "the files of $operator do not match their checksums"
cp monitoring.coreos.com_podmonitors.yaml monitoring.coreos.com_prometheusrules.yaml "$directory/new/kinds"
cd "$istio"
from=$(module istio.io/api)
from=$from/kubernetes/customresourcedefinitions.gen.yaml
# All of Istio's kinds stand in one file.
awk -v RS='---\n' '/\n  name: peerauthentications\.security\.istio\.io\n/' "$from" >"$directory/new/kinds/peerauthentications.yaml"
[ -s "$directory/new/kinds/peerauthentications.yaml" ] || fail "$from has no PeerAuthentication"
cd "$source"
# Two compilers at a time leave memory for what else runs. -v names each package once it is compiled.
{ go build -v -p=2 -trimpath -ldflags="-s -w $versions" -o "$directory/new/" . helm.sh/helm/v3/cmd/helm 2>&1 \
    || echo "go build failed"; } \
    | awk '/go build failed/ { failed = 1 }
        /^[a-z0-9._-]+(\/[A-Za-z0-9._~-]+)*$/ { if (++packages % 100 == 0) print "install-kubernetes: " packages " packages"; next }
        { print } END { exit failed }' || fail "go build failed in $source; its message is above"
mv -f "$directory/new/kubernetes" "$directory/kubernetes"
mv -f "$directory/new/helm" "$directory/helm"
rm -rf "$directory/kinds"
mv "$directory/new/kinds" "$directory/kinds"
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet cluster-dns kubectl; do
    ln -sf kubernetes "$directory/$name"
done
rm -rf "$directory/new"
echo "$hash" >"$directory/sources"
say "built $directory/kubernetes and helm in $(($(date +%s) - started)) s"
