#!/usr/bin/env bash
# Makes Debian packages of the binaries that are built: `build.sh [ARCHITECTURE...]`, by Debian's names, into target/deb.
# Without arguments: this machine's, and arm64 as well where target/dist-arm64 has its binary.
# The same source gives the same bytes. All times are SOURCE_DATE_EPOCH, by default that of the commit.
# SHIM_BINARY names what `make build` made for this machine, DEB_DIRECTORY another place for the packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "deb: $*" >&2; exit 1; }
command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing; packages are made on Debian and its kin"
# Nobody but root can read the program to pack it, once it has its mode.
if [ "$(id -u)" != 0 ] && [ -z "${FAKEROOTKEY:-}" ]; then
  command -v fakeroot >/dev/null || fail "fakeroot is missing; install it or run this as root"
  exec fakeroot "$0" "$@"
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
# Threads decide where xz begins a block.
export SOURCE_DATE_EPOCH DPKG_DEB_THREADS_MAX=1
output=${DEB_DIRECTORY:-target/deb}
native=$(dpkg --print-architecture)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
umask 022
mkdir -p "$output"

binary() { # ARCHITECTURE
  if [ "$1" = "$native" ]; then echo "${SHIM_BINARY:-target/dist/sds-shim}"; else echo "target/dist-$1/sds-shim"; fi
}

put() { # MODE SOURCE TARGET
  install -D -m "$1" "$2" "$root/$3"
}

packed() { # SOURCE TARGET
  install -d "$(dirname "$root/$2")"
  gzip -9n <"$1" >"$root/$2"
}

build() { # ARCHITECTURE
  local shim root=$scratch/$1 documents=usr/share/doc/sds-shim
  shim=$(binary "$1")
  [ -x "$shim" ] || fail "$shim is missing: run \`make build\`"
  put 0111 "$shim" usr/bin/sds-shim
  sed 's|/usr/local/bin|/usr/bin|; s|^\[Unit\]$|&\nDocumentation=man:sds-shim(1)|' packaging/systemd/sds-shim.service >"$scratch/unit"
  put 644 "$scratch/unit" usr/lib/systemd/system/sds-shim.service
  put 644 packaging/systemd/sds-shim.conf usr/lib/tmpfiles.d/sds-shim.conf
  put 644 packaging/debian/environment etc/sds-shim/environment
  put 644 packaging/completions/sds-shim.bash usr/share/bash-completion/completions/sds-shim
  put 644 packaging/completions/sds-shim.zsh usr/share/zsh/vendor-completions/_sds-shim
  put 644 packaging/completions/sds-shim.fish usr/share/fish/vendor_completions.d/sds-shim.fish
  put 644 packaging/debian/copyright "$documents/copyright"
  put 644 packaging/debian/overrides usr/share/lintian/overrides/sds-shim
  packed packaging/man/sds-shim.1 usr/share/man/man1/sds-shim.1.gz
  sed "s/@VERSION@/$version/; s/@DATE@/$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")/" packaging/debian/changelog >"$scratch/changelog"
  packed "$scratch/changelog" "$documents/changelog.gz"
  local size
  size=$(du -k --apparent-size -s "$root" | cut -f 1)
  install -d "$root/DEBIAN"
  sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$1/; s/@SIZE@/$size/" packaging/debian/control >"$root/DEBIAN/control"
  echo /etc/sds-shim/environment >"$root/DEBIAN/conffiles"
  for script in postinst prerm postrm; do
    install -m 755 "packaging/debian/$script" "$root/DEBIAN/$script"
  done
  (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)
  find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -Zxz --build "$root" "$output/sds-shim_${version}_$1.deb" >/dev/null
  echo "deb: $output/sds-shim_${version}_$1.deb ($(($(stat -c %s "$output/sds-shim_${version}_$1.deb") / 1024)) KiB)"
}

if [ $# = 0 ]; then
  set -- "$native"
  if [ "$native" != arm64 ] && [ -x "$(binary arm64)" ]; then set -- "$native" arm64; fi
fi
for architecture; do build "$architecture"; done
