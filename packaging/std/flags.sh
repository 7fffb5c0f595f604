#!/usr/bin/env bash
# Prints what cargo needs to build the standard library anew for the shipped binary, once its source is there.
# As it comes compiled, it brings along the reader of debug information behind backtraces, which nothing here prints, and
# it is built for speed: 320 KiB of mapped memory in each sidecar. Stable cargo builds it when it is told to
# (RUSTC_BOOTSTRAP=1, as `make asan`).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
source=$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock
if [ ! -f "$source" ]; then
  as=std
  # Whatever this prints on the way is for people.
  exec 3>&1 1>&2
  . "$root/tests/testkit/install.sh"
  if command -v rustup >/dev/null; then
    say "installing the standard library's source (rustup component add rust-src)"
    retry rustup component add rust-src || true
  fi
  if [ ! -f "$source" ]; then
    say "no source of the standard library; install it (rustup component add rust-src, or your distribution's rust-src)"
    say "building with the compiled standard library instead; the binary becomes 320 KiB larger"
    exit
  fi
  exec 1>&3
fi
echo "-Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size"
