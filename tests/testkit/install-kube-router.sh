#!/bin/sh
# Builds kube-router as target/kube-router/kube-router, as tests/go/kube-router/go.mod names it, for the test in which a
# NetworkPolicy is enforced on a node. Quick when it has been made from the same sources. Needs Go, which comes from Debian's
# packages when it is missing; the modules come from Go's module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/kube-router
directory=$root/target/kube-router

hash=$(cd "$source" && cat go.mod go.sum "$root/tests/testkit/install-kube-router.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
cd "$source"
export GOFLAGS=-mod=readonly CGO_ENABLED=0
say "building kube-router $(sed -n 's|^\tgithub.com/cloudnativelabs/kube-router/v2 \([^ ]*\).*|\1|p' go.mod) (some minutes)"
started=$(date +%s)
retry go mod download || fail "could not download the modules of $source/go.mod; go's message is above"
rm -rf "$directory.new"
mkdir -p "$directory.new"
# Two compilers at a time leave memory for what else runs.
go build -p=2 -trimpath -ldflags="-s -w" -o "$directory.new/" tool || fail "go build failed in $source; its message is above"
rm -rf "$directory"
mv "$directory.new" "$directory"
echo "$hash" >"$directory/sources"
say "built $directory in $(($(date +%s) - started)) s"
