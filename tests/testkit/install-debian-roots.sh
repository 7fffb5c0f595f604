#!/bin/sh
# Makes minimal Debian systems, target/debian/SUITE.tar, for the tests of the packages: Debian's essential packages, and
# adduser, systemd and dbus. Quick when they are there. SUITES="suite..." names others than bookworm and trixie.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/debian
suites=${SUITES:-bookworm trixie}

lacking() { for suite in $suites; do [ -s "$directory/$suite.tar" ] || echo "$suite"; done; }
[ -n "$(lacking)" ] || exit 0
. "$root/tests/testkit/install.sh"

command -v mmdebstrap >/dev/null || packages mmdebstrap mmdebstrap
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $codename" | head -n 1)
[ -n "$archive" ] || fail "this machine's apt has no Debian archive to make systems from"
mkdir -p "$directory"
for suite in $(lacking); do
    say "making a minimal Debian $suite (about 60 MB to fetch, one or two minutes)"
    retry mmdebstrap --quiet --variant=minbase --include=adduser,dbus,systemd-sysv \
        --dpkgopt=path-exclude=/usr/share/locale/* "$suite" "$directory/$suite.new.tar" "$archive" \
        || fail "mmdebstrap could not make Debian $suite; its message is above"
    mv -f "$directory/$suite.new.tar" "$directory/$suite.tar"
done
