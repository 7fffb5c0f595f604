#!/bin/sh
# Unpacks Prometheus, promtool and the Prometheus project's Python parser into target/prometheus, for the tests. Quick when they
# are already there. PROMETHEUS_DIR names another directory. Both come from Debian's packages; of these only python3 is
# installed, where it is missing.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${PROMETHEUS_DIR:-$root/target/prometheus}

if [ -x "$directory/promtool" ] && [ -x "$directory/prometheus" ] && [ -d "$directory/python/prometheus_client" ] && command -v python3 >/dev/null; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null \
    || fail "there is no apt-get; put promtool and python/prometheus_client into $directory"
command -v python3 >/dev/null || packages python3 python3

mkdir -p "$directory"
# Unpacked beside its place and moved there whole, so that an interrupted run leaves nothing half done.
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
say "unpacking prometheus and python3-prometheus-client into $directory (about 20 MB)"
cd "$scratch"
debian download prometheus python3-prometheus-client 2>/dev/null \
    || { retry debian update && retry debian download prometheus python3-prometheus-client; } \
    || fail "apt-get could not download the packages; its message is above"
for package in *.deb; do dpkg-deb -x "$package" .; done
rm -rf "$directory/python"
mkdir "$directory/python"
mv usr/lib/python3/dist-packages/prometheus_client "$directory/python/"
mv -f usr/bin/prometheus "$directory/prometheus"
mv -f usr/bin/promtool "$directory/promtool"
