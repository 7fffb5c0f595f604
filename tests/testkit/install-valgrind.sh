#!/bin/sh
# Installs valgrind from Debian's packages, which counts instructions. Quick when it is there.
set -eu

fail() { echo "install-valgrind: $*" >&2; exit 1; }

if command -v valgrind >/dev/null; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "valgrind is missing; install it (Debian: apt-get install valgrind) or run this as root once"
command -v apt-get >/dev/null || fail "valgrind is missing and there is no apt-get to install it with"
echo "install-valgrind: installing valgrind (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends valgrind >/dev/null \
    || fail "apt-get could not install valgrind"
