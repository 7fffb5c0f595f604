#!/bin/sh
# Installs podman with the runtime runc from Debian's packages, for the image and its tests. Quick when they are there.
set -eu

fail() { echo "install-podman: $*" >&2; exit 1; }

if command -v podman >/dev/null && command -v runc >/dev/null; then
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "podman or runc is missing; install them (Debian: apt-get install podman runc) or run this as root once"
command -v apt-get >/dev/null || fail "podman or runc is missing and there is no apt-get to install them with"
echo "install-podman: installing podman and runc (apt-get)"
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends podman runc >/dev/null \
    || fail "apt-get could not install podman and runc"
