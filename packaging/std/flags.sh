#!/usr/bin/env bash
# Prints what cargo needs to build the standard library anew for the shipped binary, where its source can be had.
# As it comes compiled, it brings along the reader of debug information behind backtraces, which nothing here prints, and
# it is built for speed: 320 KiB of mapped memory in each sidecar. Stable cargo builds it when it is told to
# (RUSTC_BOOTSTRAP=1, as `make asan`).
set -euo pipefail
# All that is said on the way is for people.
"$(dirname "$0")/install.sh" >&2
if [ -f "$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
  echo "-Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size"
fi
