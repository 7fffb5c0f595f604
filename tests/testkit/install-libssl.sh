#!/bin/sh
# Installs the distribution's libssl with its headers and pkg-config, for the plain build. Quick when they are there.
set -eu

if pkg-config --exists libssl 2>/dev/null; then
    exit 0
fi
fail() { echo "install-libssl: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "libssl-dev or pkg-config is missing; install them (Debian: apt-get install libssl-dev pkg-config) or run this as root once"
command -v apt-get >/dev/null || fail "libssl's headers or pkg-config are missing and there is no apt-get to install them with"
echo "install-libssl: installing libssl-dev and pkg-config (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends libssl-dev pkg-config >/dev/null \
    || fail "apt-get could not install libssl-dev and pkg-config"
