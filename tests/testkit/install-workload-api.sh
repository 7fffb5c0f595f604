#!/bin/sh
# Puts applications with the usual libraries for the SPIFFE Workload API into target/workload-api, for the tests:
# go-spiffe, grpc-go's reader of bundle maps, and spiffe-helper, from Go's module proxy (tests/go/workload-api; go.sum has
# the checksums); the package `spiffe` of PyPI in a virtual environment (versions in
# tests/workload_api/requirements.txt); the crate `spiffe` (tests/workload_api/rust-spiffe). Quick when all are there.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/workload-api
rust=$root/tests/workload_api/rust-spiffe
directory=$root/target/workload-api

hash=$(cd "$source" && cat go.mod go.sum main.go bundle-map/main.go "$root/tests/workload_api/requirements.txt" \
    "$root/tests/testkit/install-workload-api.sh" "$rust/Cargo.toml" "$rust/Cargo.lock" "$rust/src/main.rs" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ] && [ -x "$directory/python/bin/python3" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
export CGO_ENABLED=0 GOFLAGS=-mod=readonly
mkdir -p "$directory"
say "building applications with go-spiffe and grpc-go, and spiffe-helper (a minute the first time)"
build() { # NAME PACKAGE
    (cd "$source" && retry go build -p=2 -trimpath -ldflags="-s -w" -o "$directory/$1.new" "$2") \
        || fail "go build $2 failed in $source; its message is above"
    mv -f "$directory/$1.new" "$directory/$1"
}
build go-spiffe .
build bundle-map ./bundle-map
build spiffe-helper github.com/spiffe/spiffe-helper/cmd/spiffe-helper

say "building an application with the crate spiffe (a minute the first time)"
# With the OpenSSL of the tests: the machine need not have one.
"$root/packaging/openssl/build.sh"
OPENSSL_DIR=$root/target/openssl/install OPENSSL_STATIC=1 retry cargo build --quiet --locked --manifest-path "$rust/Cargo.toml" \
    --target-dir "$directory/build" || fail "cargo build failed in $rust; its message is above"
cp "$directory/build/debug/rust-spiffe" "$directory/rust-spiffe.new"
mv -f "$directory/rust-spiffe.new" "$directory/rust-spiffe"

say "installing py-spiffe"
rm -rf "$directory/python"
python3 -m venv "$directory/python" || fail "python3 cannot make a virtual environment: install python3-venv"
retry "$directory/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    -r "$root/tests/workload_api/requirements.txt" || fail "pip could not install py-spiffe"
echo "$hash" >"$directory/sources"
