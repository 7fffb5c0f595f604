#!/usr/bin/env bash
# Builds the fuzz targets and runs them, as many at a time as there are processors:
#   tests/fuzz/run.sh short [TARGET…]    a few thousand inputs, the same in every run
#   tests/fuzz/run.sh SECONDS [TARGET…]  for so long each, from what earlier runs have found, in target/fuzz/corpus
# The flags are those of cargo-fuzz, so that neither it nor a nightly compiler need be installed: the stable compiler
# brings the runtime of AddressSanitizer, and RUSTC_BOOTSTRAP lets it be used. Who has cargo-fuzz can use it as well:
#   cargo fuzz run --fuzz-dir tests/fuzz TARGET
set -euo pipefail
cd "$(dirname "$0")/../.."
export how=${1:-short}
shift || true
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for file in tests/fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# libFuzzer is C++, and compiled with the targets.
tests/testkit/install-packages.sh g++ c++
tests/testkit/install-packages.sh python3 python3
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-sanitizer-coverage-stack-depth
  -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1 --cfg fuzzing
  -Dwarnings"
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$(tr '\n' ' ' <<<"$flags") cargo build --quiet --locked --release --bins \
  --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz --target "$host"

export binaries=$PWD/target/fuzz/$host/release work=$PWD/target/fuzz
rm -rf "$work/seeds" "$work/short"
python3 tests/fuzz/seeds.py "$work/seeds"

run() {
  case $how in
    short) found=$work/short/$1 limit="-runs=3000 -seed=1" ;;
    *) found=$work/corpus/$1 limit="-max_total_time=$how -seed=0" ;;
  esac
  log=$work/$1.log
  mkdir -p "$found" "$work/artifacts"
  # Backtraces would need more memory than the arena has; leaks are found only where ptrace is allowed.
  # shellcheck disable=SC2086
  if RUST_BACKTRACE=0 ASAN_OPTIONS=detect_leaks=0 "$binaries/$1" $limit -artifact_prefix="$work/artifacts/$1-" \
    -print_final_stats=1 "$found" "$work/seeds/$1" >"$log" 2>&1; then
    echo "fuzz: $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, all as it must be"
  else
    grep -v '^#' "$log" | tail -n 40 >&2
    echo "fuzz: $1 FAILED; again with: $binaries/$1 <input>, which stands in $work/artifacts" >&2
    return 255
  fi
}
export -f run
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -euc 'run {}'
