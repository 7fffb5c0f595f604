#!/bin/sh
# Installs what `make build ARCH=...` cross-compiles with: Rust's standard library for that architecture by rustup, Debian's
# cross compiler, and libc's static library. Quick when all is there; there is nothing to do for the machine's own
# architecture.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/link/architecture.sh"
architecture "${1:-}"

# The libc of the cross compiler is the distribution's as it was first released, without what was mended since. So the
# architecture's own package is fetched and unpacked, in the version that this machine has for itself.
libc=$root/target/libc$suffix
version=$(dpkg-query --show --showformat '${Version}' libc6-dev 2>/dev/null) || version=
has_libc() { [ -z "$tools" ] || [ "$(cat "$libc/wanted" 2>/dev/null)" = "$version" ]; }

has_compiler && has_target && has_libc && exit 0
as=install-cross-$platform
. "$root/tests/testkit/install.sh"

if ! has_target; then
    command -v rustup >/dev/null || fail "this Rust has no standard library for $target, and there is no rustup to add it"
    say "adding Rust's standard library for $target (rustup)"
    retry rustup --quiet target add "$target" || fail "rustup could not add $target; its message is above"
    has_target || fail "rustup has added $target, and $(command -v rustc) does not find it"
fi
if ! has_compiler; then
    packages "a compiler for $platform with libc's headers" "gcc-$(echo "$machine" | tr _ -)-linux-gnu" "libc6-dev-$platform-cross"
    has_compiler || fail "the compiler for $platform is installed, and $cc still does not work"
fi
has_libc && exit 0

# The machine's own archives, and lists that its apt does not see.
mkdir -p "$libc/lists/partial" "$libc/cache/archives/partial"
foreign="-o Dir::State::lists=$libc/lists -o Dir::Cache=$libc/cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root -o APT::Architecture=$platform -o APT::Architectures=$platform -o Acquire::Languages=none"
say "fetching libc's static library for $platform, version $version"
fetch() {
    # shellcheck disable=SC2086 # several words
    retry debian $foreign update && rm -rf "$libc/deb" "$libc/usr" && mkdir "$libc/deb" && cd "$libc/deb" &&
        { debian $foreign download "libc6-dev=$version" || debian $foreign download libc6-dev; }
}
if (fetch); then
    dpkg-deb --fsys-tarfile "$libc"/deb/*.deb | tar -x -C "$libc" --wildcards './usr/lib/*.a' './usr/lib/*.o' ||
        fail "libc6-dev for $platform cannot be unpacked"
    dpkg-deb --field "$libc"/deb/*.deb Version >"$libc/version"
    [ "$(cat "$libc/version")" = "$version" ] || say "there is no such version for $platform: using $(cat "$libc/version")"
else
    say "cannot fetch it; using the libc of the cross compiler instead, which may lack later fixes"
    rm -f "$libc/version"
fi
rm -rf "$libc/deb" "$libc/lists" "$libc/cache"
echo "$version" >"$libc/wanted"
