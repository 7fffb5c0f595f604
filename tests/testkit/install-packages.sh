#!/bin/sh
# Installs Debian packages, unless all of the programs that are wanted of them are there.
# Usage: install-packages.sh "package..." program...
set -eu

fail() { echo "install-packages: $*" >&2; exit 1; }

packages=$1
shift
missing=
for program; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || fail "missing:$missing; install them (Debian: apt-get install $packages) or run this as root once"
command -v apt-get >/dev/null || fail "missing:$missing, and there is no apt-get to install $packages with"
echo "install-packages: installing $packages (apt-get)"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # several words
apt-get -qq update >/dev/null && apt-get -qq install -y --no-install-recommends $packages >/dev/null ||
    fail "apt-get could not install $packages"
for program in $missing; do
    command -v "$program" >/dev/null || fail "$packages are installed, and there is still no $program"
done
