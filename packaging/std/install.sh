#!/usr/bin/env bash
# Installs the standard library's source, from which packaging/std/flags.sh has it built. Quick when it is there; where it
# cannot be had, that is said, and what it costs.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
source=$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock
[ ! -f "$source" ] || exit 0
as=std
. "$root/tests/testkit/install.sh"
if command -v rustup >/dev/null; then
  say "installing the standard library's source (rustup component add rust-src)"
  retry rustup component add rust-src || true
fi
if [ ! -f "$source" ]; then
  say "no source of the standard library; install it (rustup component add rust-src, or your distribution's rust-src)"
  say "building with the compiled standard library instead; the binary becomes 320 KiB larger"
fi
