#!/bin/sh
# Builds the load generator vegeta as target/vegeta/vegeta, for `make bench`. Quick when it is already there. Needs Go,
# which comes from Debian's packages when it is missing.
set -eu

version=v12.13.0
root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/vegeta

if [ -x "$directory/vegeta" ] && [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
mkdir -p "$directory"
say "building github.com/tsenart/vegeta $version"
export GOBIN="$directory"
retry go install "github.com/tsenart/vegeta/v12@$version" >"$directory/build.log" 2>&1 \
    || { tail -n 20 "$directory/build.log" >&2; fail "go could not build vegeta"; }
echo "$version" >"$directory/version"
say "ready"
