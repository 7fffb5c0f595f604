#!/bin/sh
# Builds SPIRE's server and agent into target/spire, for tests/spiffe. Quick when they are there. Needs Go, which comes
# from Debian's packages when it is missing; the modules come from Go's module proxy.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/spire
directory=$root/target/spire

hash=$(cd "$source" && cat go.mod go.sum "$root/tests/testkit/install-spire.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
mkdir -p "$directory"
say "building SPIRE's server and agent (some ten minutes and 3 GB for modules and cache, once)"
cd "$source"
export GOFLAGS=-mod=readonly CGO_ENABLED=1
for program in spire-agent spire-server; do
    # Two compilers at a time leave memory for what else runs.
    retry go build -p=2 -trimpath -ldflags="-s -w" -o "$directory/$program.new" "github.com/spiffe/spire/cmd/$program" \
        || fail "go build failed in $source; its message is above"
    mv -f "$directory/$program.new" "$directory/$program"
done
echo "$hash" >"$directory/sources"
