#!/bin/sh
# Prints the directory of a Go that fetches by itself whichever Go a module wants, which those before 1.21 cannot. Go
# comes from Debian's packages when it is missing; where that is too old, it still fetches a newer one as the module as
# which Go is published, into target/go. Quick when there is one.
set -eu

directory=$(cd "$(dirname "$0")/../.." && pwd)/target/go
least=1.21
newer=1.26.8

say() { echo "install-go: $*" >&2; }
fail() { say "$*"; exit 1; }
version() { (cd / && GOTOOLCHAIN=local "$1" env GOVERSION | sed 's/^go//; s/[^0-9.].*//'); }
will_do() { [ "$(printf '%s\n' "$least" "$(version "$1")" | sort -V | head -n 1)" = "$least" ]; }

if command -v go >/dev/null && will_do go; then
    dirname "$(command -v go)"
    exit 0
fi
if [ ! -x "$directory/bin/go" ]; then
    if ! command -v go >/dev/null; then
        [ "$(id -u)" = 0 ] || fail "go is missing; install Go $least or newer, or run this as root once"
        command -v apt-get >/dev/null || fail "go is missing and there is no apt-get to install it with"
        say "installing golang-go (apt-get)"
        apt-get -qq update >/dev/null \
            && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends golang-go >/dev/null \
            || fail "apt-get could not install golang-go"
        if will_do go; then
            dirname "$(command -v go)"
            exit 0
        fi
    fi
    say "Go $(version go) is too old to fetch another by itself: fetching Go $newer for it"
    module=golang.org/toolchain@v0.0.1-go$newer.linux-$(go env GOARCH)
    from=$(cd / && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    [ -n "$from" ] || fail "Go $newer cannot be had; go's message is above"
    rm -rf "$directory" "$directory.new"
    mkdir -p "$directory.new"
    cp -r "$from/." "$directory.new"
    chmod -R u+w "$directory.new"
    # Files of a module are not executable.
    find "$directory.new/bin" "$directory.new/pkg/tool" -type f -exec chmod +x {} +
    mv "$directory.new" "$directory"
fi
will_do "$directory/bin/go" || fail "$directory/bin/go does not run"
echo "$directory/bin"
