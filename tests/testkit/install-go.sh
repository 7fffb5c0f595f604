#!/bin/sh
# Prints the directory of a Go that fetches by itself whichever Go a module wants, which those before 1.21 cannot, and
# those later do when GOTOOLCHAIN is auto. Go comes from Debian's packages when it is missing; where that is too old, it
# still fetches a newer one as the module as which Go is published, into target/go. Quick when there is one.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/go
least=1.21
newer=1.26.8

version() { (cd / && GOTOOLCHAIN=local "$1" env GOVERSION | sed 's/^go//; s/[^0-9.].*//'); }
will_do() {
    command -v "$1" >/dev/null && [ "$(printf '%s\n' "$least" "$(version "$1")" | sort -V | head -n 1)" = "$least" ]
}

for go in go "$directory/bin/go"; do
    if will_do "$go"; then
        dirname "$(command -v "$go")"
        exit 0
    fi
done
. "$root/tests/testkit/install.sh"

if ! command -v go >/dev/null; then
    packages "Go $least or newer" golang-go
    if will_do go; then
        dirname "$(command -v go)"
        exit 0
    fi
fi
say "Go $(version go) is too old to fetch another by itself: fetching Go $newer for it"
module=golang.org/toolchain@v0.0.1-go$newer.linux-$(go env GOARCH)
cd /
retry go mod download "$module" || fail "could not download Go $newer; go's message is above"
from=$(go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
[ -n "$from" ] || fail "Go $newer is not where go has its modules"
rm -rf "$directory" "$directory.new"
mkdir -p "$directory.new"
cp -r "$from/." "$directory.new"
chmod -R u+w "$directory.new"
# Files of a module are not executable.
find "$directory.new/bin" "$directory.new/pkg/tool" -type f -exec chmod +x {} +
mv "$directory.new" "$directory"
will_do "$directory/bin/go" || fail "$directory/bin/go does not run"
echo "$directory/bin"
