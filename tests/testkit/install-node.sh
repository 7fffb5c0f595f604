#!/bin/sh
# Builds containerd and the network plugins, as tests/go/node/go.mod names them, and runc, as tests/go/runc/go.mod does, into
# target/node-programs, for the tests that run a node of Kubernetes. Quick when they have been made from the same sources.
# Needs Go, which comes from Debian's packages when it is missing, as do a C compiler and libseccomp for runc; the modules
# come from Go's module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/node
runc=$root/tests/go/runc
directory=$root/target/node-programs

hash=$(cd "$source" && cat go.mod go.sum "$runc/go.mod" "$runc/go.sum" "$root/tests/testkit/install-node.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

has_libseccomp() { pkg-config --exists libseccomp 2>/dev/null && echo '#include <seccomp.h>' | cc -E -x c - >/dev/null 2>&1; }
has_libseccomp || packages "a C compiler with libseccomp's headers" gcc libc6-dev libseccomp-dev pkg-config

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
containerd=$(sed -n 's/^\tgithub.com\/containerd\/containerd\/v2 \([^ ]*\).*/\1/p' "$source/go.mod")
say "building containerd $containerd and plugins for the network of pods (some minutes)"
started=$(date +%s)
export GOFLAGS=-mod=readonly CGO_ENABLED=0
for module in "$source" "$runc"; do
    cd "$module"
    retry go mod download || fail "could not download the modules of $module/go.mod; go's message is above"
done
cd "$source"
rm -rf "$directory.new"
mkdir -p "$directory.new"
# Two compilers at a time leave memory for what else runs.
go build -p=2 -trimpath -ldflags="-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd" \
    -o "$directory.new/" tool || fail "go build failed in $source; its message is above"
# What enters a container's namespaces is written in C.
cd "$runc"
CGO_ENABLED=1 go build -p=2 -trimpath -tags seccomp -ldflags="-s -w" -o "$directory.new/" tool \
    || fail "go build failed in $runc; its message is above"
rm -rf "$directory"
mv "$directory.new" "$directory"
echo "$hash" >"$directory/sources"
say "built $directory in $(($(date +%s) - started)) s"
