#!/bin/sh
# Puts gVisor's runtime into target/gvisor/runsc: Debian 13's, which the machine itself need not have as its own, out of
# the archive that this machine's apt uses; where that version is not to be had, the machine's own package. Quick when it
# is there.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/gvisor
version=0.0~20240729.0-4+b7
sum=3c25a5130dfac2f71237d5baad56ac86a255de87a0400f11b36a555156dc325a

[ ! -x "$directory/runsc" ] || exit 0
. "$root/tests/testkit/install.sh"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $codename" | head -n 1)
mkdir -p "$directory"
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# The sum is that of amd64.
fetch() {
    [ -n "$archive" ] && [ "$(dpkg --print-architecture)" = amd64 ] || return
    say "fetching runsc $version (7 MB)"
    retry /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file "${archive%/}/pool/main/g/golang-gvisor-gvisor/runsc_${version}_amd64.deb" \
        "$scratch/runsc.deb" "SHA256:$sum" >&2
}
if (pauses=5 && fetch); then
    dpkg-deb --fsys-tarfile "$scratch/runsc.deb" | tar -x -C "$scratch" ./usr/bin/runsc || fail "there is no runsc in its package"
    mv -f "$scratch/usr/bin/runsc" "$directory/runsc"
else
    say "could not download runsc $version: using this machine's own"
    command -v runsc >/dev/null || packages runsc runsc
    ln -sf "$(command -v runsc)" "$directory/runsc"
fi
