#!/usr/bin/env bash
# Runs the tests that need a Kubernetes cluster, each with one of its own, which takes most of a gigabyte. One test follows
# pods through all that can happen to them on a node: the others run beside it, one by one, as both wait most of the time.
set -euo pipefail
cd "$(dirname "$0")/../.."
long=node::life::sidecars_live_through_what_a_kubelet_does

run() { cargo --locked test --test kubernetes -- --include-ignored --nocapture --test-threads=1 "$@"; }

cargo --locked test --test kubernetes --no-run
(run --exact "$long" 2>&1 | sed -u 's/^/[life] /') &
beside=$!
failed=no
run --skip "$long" || failed=yes
wait "$beside" || failed=yes
[ "$failed" = no ] || { echo "tests against Kubernetes have failed; what they said is above" >&2; exit 1; }
