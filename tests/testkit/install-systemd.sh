#!/bin/sh
# Installs systemd-analyze with Debian's package systemd, for the test of the unit. Quick when it is there.
set -eu

fail() { echo "install-systemd: $*" >&2; exit 1; }

if command -v systemd-analyze >/dev/null; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "systemd-analyze is missing; install it (Debian: apt-get install systemd) or run this as root once"
command -v apt-get >/dev/null || fail "systemd-analyze is missing and there is no apt-get to install it with"
echo "install-systemd: installing systemd (apt-get), which is not started"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends systemd >/dev/null \
    || fail "apt-get could not install systemd"
