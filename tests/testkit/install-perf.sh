#!/bin/sh
# Installs perf from Debian's packages, which counts system calls and samples stacks. Quick when it is there.
set -eu

fail() { echo "install-perf: $*" >&2; exit 1; }

if command -v perf >/dev/null; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "perf is missing; install it (Debian: apt-get install linux-perf) or run this as root once"
command -v apt-get >/dev/null || fail "perf is missing and there is no apt-get to install it with"
echo "install-perf: installing linux-perf (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends linux-perf >/dev/null \
    || fail "apt-get could not install linux-perf"
