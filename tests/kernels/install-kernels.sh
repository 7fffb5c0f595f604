#!/bin/sh
# Puts the kernels that tests/kernels/kernels names into target/kernels/NAME/vmlinuz, out of Debian's packages, and
# installs QEMU, a static busybox for each architecture and cpio. Quick when all is there. KERNELS="NAME..." takes some
# of them; `install-kernels.sh --architectures` prints which architectures these have, and installs nothing.
# What cannot be had is skipped and said so, but for continuous integration (CI=true or REQUIRE_ROOT set): there it is
# an error. The archive is the one that this machine's apt uses, with suites that the machine itself need not have.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$root/target/kernels
as=install-kernels
own=$(dpkg --print-architecture 2>/dev/null) || own=amd64

# The lines of the list that KERNELS names, of architecture $1 or all.
chosen() {
    sed '/^#/d; /^$/d' "$root/tests/kernels/kernels" | while read -r name arch rest; do
        case " ${KERNELS:-$name} " in *" $name "*) ;; *) continue ;; esac
        [ "${1:-$arch}" != "$arch" ] || echo "$name $arch $rest"
    done
}
architectures() { chosen | cut -d' ' -f2 | sort -u; }
[ "${1:-}" != --architectures ] || { architectures; exit 0; }

# Those of architecture $1 that are not there.
wanted() {
    chosen "$1" | while read -r name _ suite series package version _; do
        if [ "$(cat "$directory/$name/wanted" 2>/dev/null)" != "$package $version" ] || [ ! -s "$directory/$name/vmlinuz" ]; then
            echo "$name $suite $series $package $version"
        fi
    done
}
emulator() { case $1 in arm64) echo qemu-system-aarch64 ;; *) echo qemu-system-x86_64 ;; esac; }
emulators() { for one in $(architectures); do command -v "$(emulator "$one")" >/dev/null || return; done; }
equipped() { emulators && command -v busybox >/dev/null && command -v cpio >/dev/null; }
# Another architecture's busybox, which the machine cannot have installed beside its own.
busybox() { [ "$1" = "$own" ] || [ -s "$directory/busybox-$1" ]; }
complete() { for one in $(architectures); do [ -z "$(wanted "$one")" ] && busybox "$one" || return; done; }

equipped && complete && exit 0
. "$root/tests/testkit/install.sh"

in_ci() { [ "${CI:-}" = true ] || [ -n "${REQUIRE_ROOT:-}" ]; }
skip() {
    in_ci && fail "$*"
    say "SKIPPED: $*"
}

if ! equipped; then
    # `packages` ends the shell that it fails in.
    # shellcheck disable=SC2046 # a package each
    (packages "QEMU, busybox or cpio" busybox-static cpio $(architectures | sed 's/amd64/x86/; s/arm64/arm/; s/^/qemu-system-/')) || { skip "no QEMU, no test under other kernels"; exit 0; }
fi
complete && exit 0

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror_of() {
    apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $1" | head -n 1
}
archive=$(mirror_of "$codename" 2>/dev/null) || archive=
security=$(mirror_of "$codename-security" 2>/dev/null) || security=
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -n "$archive" ] && [ -r "$keyring" ] || { skip "this machine's apt has no Debian archive to fetch kernels from"; exit 0; }

mkdir -p "$directory"
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# An apt of our own for architecture $1: the machine's mirrors and trust, other suites, and lists that the machine's apt
# does not see.
apt_for() {
    arch=$1
    apt=$directory/apt/$arch
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    private="-o Dir::State::lists=$apt/lists -o Dir::Cache=$apt/cache -o Dir::Cache::pkgcache=pkgcache.bin
        -o Dir::Cache::srcpkgcache=srcpkgcache.bin -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=-
        -o APT::Sandbox::User=root -o APT::Architecture=$arch -o APT::Architectures=$arch
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled=false"
    : >"$apt/sources.list"
    for suite in $({ chosen "$arch" | cut -d' ' -f3; [ "$arch" = "$own" ] || echo "$codename"; } | sort -u); do
        case $suite in *-security) mirror=$security ;; *) mirror=$archive ;; esac
        [ -z "$mirror" ] || echo "deb [signed-by=$keyring] $mirror $suite main" >>"$apt/sources.list"
    done
    say "reading which packages there are for $arch in $(cut -d' ' -f4 "$apt/sources.list" | paste -sd' ')"
    # shellcheck disable=SC2086 # several words
    retry debian $private update
}

# All kernels of suite $1 with the flavour $2, oldest first: package, version, size. An image that holds nothing but the
# name of a binary is small.
kernels() {
    # shellcheck disable=SC2086
    [ -e "$scratch/$1.$2.list" ] || apt-get $private indextargets --format '$(FILENAME)' 'Identifier: Packages' "Release: $1" \
        | while read -r file; do /usr/lib/apt/apt-helper cat-file "$file"; done \
        | grep -E '^(Package|Version|Size): ' \
        | awk -v flavour="$2" '
            /^Package: / { package = $2; wanted = package ~ "^linux-(image|binary)-[0-9].*-" flavour "$" }
            /^Version: / { version = $2 }
            /^Size: / && wanted && $2 > 1000000 { print package, version, $2 }' | sort -k2,2V >"$scratch/$1.$2.list"
    cat "$scratch/$1.$2.list"
}

fetch_kernels() {
    wanted "$arch" | while read -r name suite series package version; do
        flavour=$(echo "$package" | grep -oE "cloud-$arch$|$arch-16k$")
        found=$(kernels "$suite" "$flavour" | awk -v p="$package" -v v="$version" '$1 == p && $2 == v')
        [ -n "$found" ] || found=$(kernels "$suite" "$flavour" | grep -E "^linux-(image|binary)-$series[.]" | tail -n 1)
        [ -n "$found" ] || found=$(kernels "$suite" "$flavour" | tail -n 1)
        [ -n "$found" ] || { skip "$suite has no kernel for $name"; continue; }
        # shellcheck disable=SC2086
        set -- $found
        [ "$1 $2" = "$package $version" ] || say "$suite no longer has $package $version: taking $1 $2"
        have=$(grep -l -x -F "$1 $2" "$directory"/*/version 2>/dev/null | head -n 1)
        rm -rf "$scratch/deb"
        mkdir "$scratch/deb"
        if [ -n "$have" ] && [ -s "${have%/version}/vmlinuz" ]; then
            cp "${have%/version}/vmlinuz" "$scratch/vmlinuz"
        else
            say "fetching $1 $2 ($(($3 / 1000000)) MB)"
            # shellcheck disable=SC2086
            (cd "$scratch/deb" && retry debian $private download "$1=$2") \
                || { skip "could not download $1 $2; apt's message is above"; continue; }
            dpkg-deb --fsys-tarfile "$scratch"/deb/*.deb | tar -x -C "$scratch/deb" --wildcards '*/vmlinuz*' \
                || fail "$1 holds no kernel"
            find "$scratch/deb" -name 'vmlinuz*' -type f -exec mv {} "$scratch/vmlinuz" ';'
        fi
        mkdir -p "$directory/$name"
        mv -f "$scratch/vmlinuz" "$directory/$name/vmlinuz"
        echo "$1 $2" >"$directory/$name/version"
        echo "$package $version" >"$directory/$name/wanted"
    done
}

# Another architecture's static busybox; any version does.
fetch_busybox() {
    say "fetching busybox for $arch"
    rm -rf "$scratch/deb"
    mkdir "$scratch/deb"
    # shellcheck disable=SC2086
    (cd "$scratch/deb" && retry debian $private download busybox-static) || { skip "no busybox for $arch can be had"; return 0; }
    dpkg-deb --fsys-tarfile "$scratch"/deb/*.deb | tar -x -C "$scratch/deb" --wildcards '*/busybox' || fail "there is no busybox in it"
    find "$scratch/deb" -name busybox -type f -exec mv {} "$directory/busybox-$arch" ';'
}

for one in $(architectures); do
    [ -z "$(wanted "$one")" ] && busybox "$one" && continue
    apt_for "$one" || { skip "could not download the lists for $one; apt's message is above"; continue; }
    rm -f "$scratch"/*.list
    busybox "$arch" || fetch_busybox
    fetch_kernels
done
