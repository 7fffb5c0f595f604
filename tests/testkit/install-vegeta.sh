#!/bin/sh
# Builds the load generator vegeta as target/vegeta/vegeta, for `make bench`. Quick when it is already there.
set -eu

version=v12.13.0
root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/vegeta

fail() { echo "install-vegeta: $*" >&2; exit 1; }

if [ -x "$directory/vegeta" ] && [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi

command -v go >/dev/null || fail "go is missing: install Go 1.21 or later"
mkdir -p "$directory"
echo "install-vegeta: building github.com/tsenart/vegeta $version"
GOBIN=$directory go install "github.com/tsenart/vegeta/v12@$version" >"$directory/build.log" 2>&1 \
    || { tail -n 20 "$directory/build.log" >&2; fail "go could not build vegeta"; }
echo "$version" >"$directory/version"
