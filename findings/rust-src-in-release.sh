#!/usr/bin/env bash
# A release build before and after rustup's component rust-src is installed, which editors install by themselves.
#
# Guess:    the same bytes: the standard library comes compiled, and its sources are for people and editors. Its panics
#           name /rustc/COMMIT/library/..., wherever the compiler was built or is.
# Happens:  with the component there, rustc 1.95.0 names what it inlines of the standard library by where the sources lie
#           on this machine (/.../lib/rustlib/src/rust/library/...), in a release build without debug information. What
#           was compiled before still says /rustc/COMMIT/.
# Matters:  the "same" toolchain gives other bytes on a developer's machine than in CI, and a stripped program that ships
#           tells the builder's home directory. --remap-path-prefix=SYSROOT/lib/rustlib/src/rust=/rustc/COMMIT gives the
#           same bytes in both.
# Source:   Rust 1.95.0 by rustup.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export RUSTUP_HOME=$work/rustup
rustup --quiet toolchain install 1.95.0 --profile minimal --no-self-update
rustc=$(rustup which --toolchain 1.95.0 rustc)
"$rustc" --version
sysroot=$("$rustc" --print sysroot)
commit=$("$rustc" -vV | sed -n 's/^commit-hash: //p')
remap="--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$commit"
cat >"$work/main.rs" <<'END'
use std::collections::VecDeque;
fn main() {
    let mut all: VecDeque<usize> = std::env::args().map(|word| word.len()).collect();
    all.make_contiguous().sort();
    all.rotate_left(all.len() / 2);
    println!("{:?}", all.range(1..));
}
END

build() { # NAME FLAGS...
  name=$1
  shift
  "$rustc" -C opt-level=3 -C strip=symbols -C codegen-units=1 "$@" -o "$work/$name" "$work/main.rs"
  echo "$name: $(grep -c -a -F "$sysroot/lib/rustlib/src/rust/library" "$work/$name" || true) lines with the sysroot's path"
}

build without
build without-remapped "$remap"
rustup --quiet component add --toolchain 1.95.0 rust-src
build with
build with-remapped "$remap"
same() { cmp -s "$work/$1" "$work/$2" && echo same || echo different; }
seen="without and with: $(same without with); both remapped: $(same without-remapped with-remapped); path: $(
  grep -q -a -F "$sysroot/lib/rustlib/src/rust/library" "$work/with" && echo there || echo absent)"
echo "$seen"
[ "$seen" = "without and with: different; both remapped: same; path: there" ] || { echo "the behaviour has changed" >&2; exit 1; }
