#!/bin/sh
# Puts the seccomp profiles that container runtimes take by default into target/seccomp-profiles, NAME.json with the
# version in NAME.version: containerd's and Docker's by their own code, which tests/go/seccomp-profiles builds from Go's
# module proxy (go.sum has the checksums), and podman's, which CRI-O takes with a change, out of Debian's packages. Quick
# when all is there. What Debian's archive does not keep any more is said, and the test then says that it is not tested.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/tests/go/seccomp-profiles
directory=$root/target/seccomp-profiles

hash=$(cd "$source" && cat go.mod go.sum main.go podman "$root/tests/testkit/install-seccomp-profiles.sh" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$directory/sources" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
. "$root/tests/testkit/install.sh"

go=$("$root/tests/testkit/install-go.sh") || fail "there is no Go to build with"
PATH=$go:$PATH
export CGO_ENABLED=0 GOFLAGS=-mod=readonly
mkdir -p "$directory"
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

say "building what prints the profiles of containerd and Docker (half a minute the first time)"
cd "$source"
retry go build -p=2 -trimpath -o "$scratch/profiles" . || fail "go build failed in $source; its message is above"
for name in containerd docker; do
    case $name in containerd) module=github.com/containerd/containerd/v2 ;; *) module=github.com/moby/profiles/seccomp ;; esac
    "$scratch/profiles" "$name" >"$directory/$name.json" || fail "there is no profile of $name"
    sed -n "s#^[[:space:]]*$module ##p" go.mod >"$directory/$name.version"
done

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $codename" | head -n 1)
complete=true
while read -r name version sum; do
    case $name in ''|\#*) continue ;; esac
    package=golang-github-containers-common
    rm -f "$directory/$name.json" "$directory/$name.version"
    say "fetching $package $version"
    if [ -n "$archive" ] && (pauses=5 && retry /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file \
        "${archive%/}/pool/main/g/$package/${package}_${version}_all.deb" "$scratch/$name.deb" "SHA256:$sum" >&2); then
        dpkg-deb --fsys-tarfile "$scratch/$name.deb" | tar -x -C "$scratch" ./usr/share/containers/seccomp.json \
            || fail "there is no profile in $package $version"
        mv -f "$scratch/usr/share/containers/seccomp.json" "$directory/$name.json"
        echo "$version" >"$directory/$name.version"
    else
        say "SKIPPED: could not download $package $version: name another with its sum in tests/go/seccomp-profiles/podman"
        complete=false
    fi
done <"$source/podman"
! $complete || echo "$hash" >"$directory/sources"
