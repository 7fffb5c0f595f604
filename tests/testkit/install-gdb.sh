#!/bin/sh
# Installs gdb with its gcore from Debian's packages, for the tests of core images. Quick when it is already there.
set -eu

say() { echo "install-gdb: $*"; }
fail() { echo "install-gdb: $*" >&2; exit 1; }

if command -v gcore >/dev/null; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "gcore is missing; install it (Debian: apt-get install gdb) or run this as root once"
command -v apt-get >/dev/null || fail "gcore is missing and there is no apt-get to install gdb with"
say "installing gdb (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gdb >/dev/null \
    || fail "apt-get could not install gdb"
command -v gcore >/dev/null || fail "the package gdb has no gcore"
say "installed $(gdb --version | head -n 1)"
