#!/bin/sh
# Unpacks promtool and the Prometheus project's Python parser into target/prometheus, for the tests. Quick when they
# are already there. PROMETHEUS_DIR names another directory. Both come from Debian's packages; nothing is installed.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${PROMETHEUS_DIR:-$root/target/prometheus}

fail() { echo "install-prometheus: $*" >&2; exit 1; }

if [ -x "$directory/promtool" ] && [ -d "$directory/python/prometheus_client" ]; then
    exit 0
fi

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null \
    || fail "there is no apt-get; put promtool and python/prometheus_client into $directory"
command -v python3 >/dev/null || fail "python3 is missing"

mkdir -p "$directory"
# Unpacked beside its place and moved there whole, so that an interrupted run leaves nothing half done.
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
echo "install-prometheus: unpacking prometheus and python3-prometheus-client into $directory (about 20 MB)"
cd "$scratch"
apt-get -qq download prometheus python3-prometheus-client 2>/dev/null \
    || { apt-get -qq update >/dev/null && apt-get -qq download prometheus python3-prometheus-client; } \
    || fail "apt-get could not download the packages"
for package in *.deb; do dpkg-deb -x "$package" .; done
rm -rf "$directory/python"
mkdir "$directory/python"
mv usr/lib/python3/dist-packages/prometheus_client "$directory/python/"
mv -f usr/bin/promtool "$directory/promtool"
