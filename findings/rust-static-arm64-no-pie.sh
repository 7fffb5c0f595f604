#!/usr/bin/env bash
# A static program for arm64 by the flag that makes static PIEs for x86-64: -C target-feature=+crt-static.
#
# Guess:    the same on both; glibc and GCC have had static PIE for arm64 for years, and each target makes PIEs when it
#           links dynamically.
# Happens:  rustc 1.95.0 has x86-64's linked with -static-pie, and arm64's with -static -no-pie, also when
#           -C relocation-model=pic is asked for. The program lies at the same addresses in each run.
# Matters:  a daemon that is hardened on one architecture has no ASLR of its own code on the other, from one recipe, and no
#           warning says so. A link argument -static-pie stands beside -static -no-pie then: these must be taken out.
# Source:   Rust 1.95.0 by rustup. The linker is a script that writes down what it is told, so no cross compiler is needed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export RUSTUP_HOME=$work/rustup
rustup --quiet toolchain install 1.95.0 --profile minimal --no-self-update \
  --target aarch64-unknown-linux-gnu --target x86_64-unknown-linux-gnu
rustc=$(rustup which --toolchain 1.95.0 rustc)
"$rustc" --version

cat >"$work/linker" <<'END'
#!/bin/sh
for word; do case $word in -static | -static-pie | -pie | -no-pie) printf '%s ' "$word"; esac; done >>"$TOLD"
for word; do [ "${last:-}" != -o ] || : >"$word"; last=$word; done
END
chmod +x "$work/linker"
echo 'fn main() {}' >"$work/main.rs"

told() { # TARGET FLAGS...
  target=$1-unknown-linux-gnu
  shift
  : >"$work/told"
  TOLD=$work/told "$rustc" --target "$target" -C linker="$work/linker" -C linker-flavor=gcc "$@" -o "$work/program" "$work/main.rs"
  sed 's/ $//' "$work/told"
}

static=(-C target-feature=+crt-static)
expected='x86_64: -static-pie
aarch64: -static -no-pie
aarch64, relocation-model=pic: -static -no-pie
x86_64 dynamic: -pie
aarch64 dynamic: -pie'
seen="x86_64: $(told x86_64 "${static[@]}")
aarch64: $(told aarch64 "${static[@]}")
aarch64, relocation-model=pic: $(told aarch64 "${static[@]}" -C relocation-model=pic)
x86_64 dynamic: $(told x86_64)
aarch64 dynamic: $(told aarch64)"
echo "$seen"
[ "$seen" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
