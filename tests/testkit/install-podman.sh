#!/bin/sh
# Installs podman with the runtime runc from Debian's packages, for the image and its tests, and what gives pods a
# network: iproute2 and iptables. Quick when they are there.
set -eu

fail() { echo "install-podman: $*" >&2; exit 1; }

missing=
for program in podman runc ip iptables-restore; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

packages="podman runc iproute2 iptables"
[ "$(id -u)" = 0 ] || fail "missing:$missing; install them (Debian: apt-get install $packages) or run this as root once"
command -v apt-get >/dev/null || fail "missing:$missing, and there is no apt-get to install them with"
echo "install-podman: installing $packages (apt-get)"
# shellcheck disable=SC2086 # several words
apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages >/dev/null \
    || fail "apt-get could not install $packages"
