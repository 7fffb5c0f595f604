#!/bin/sh
# Installs curl from Debian's packages, for pods in tests to call with. Quick when it is there.
set -eu

fail() { echo "install-curl: $*" >&2; exit 1; }

if [ -x /usr/bin/curl ]; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "curl is missing; install it (Debian: apt-get install curl) or run this as root once"
command -v apt-get >/dev/null || fail "curl is missing and there is no apt-get to install it with"
echo "install-curl: installing curl (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends curl >/dev/null \
    || fail "apt-get could not install curl"
