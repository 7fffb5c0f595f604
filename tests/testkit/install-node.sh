#!/bin/sh
# Builds containerd and the network plugins, as tests/go/node/go.mod names them, into target/node-programs, for the tests that
# run a node of Kubernetes. Quick when they have been made from the same sources. Needs Go, which comes from Debian's
# packages when it is missing; the modules come from Go's module proxy. runc is Debian's, which `make podman` installs.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/node
directory=$root/target/node-programs

hash=$(cd "$source" && cat go.mod go.sum "$root/tests/testkit/install-node.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
containerd=$(sed -n 's/^\tgithub.com\/containerd\/containerd\/v2 \([^ ]*\).*/\1/p' "$source/go.mod")
say "building containerd $containerd and plugins for the network of pods (some minutes)"
started=$(date +%s)
cd "$source"
export GOFLAGS=-mod=readonly CGO_ENABLED=0
retry go mod download || fail "could not download the modules of $source/go.mod; go's message is above"
rm -rf "$directory.new"
mkdir -p "$directory.new"
# Two compilers at a time leave memory for what else runs.
go build -p=2 -trimpath -ldflags="-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd" \
    -o "$directory.new/" tool || fail "go build failed in $source; its message is above"
rm -rf "$directory"
mv "$directory.new" "$directory"
echo "$hash" >"$directory/sources"
say "built $directory in $(($(date +%s) - started)) s"
