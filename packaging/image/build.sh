#!/usr/bin/env bash
# Builds the container images with podman: `build.sh [BASE]`.
#   sds-shim:VERSION           the static binary on an empty base
#   sds-shim:VERSION-sidecar   BASE, an image of Istio's proxy, with the binary and `sds-shim exec` as its entrypoint
#   sds-shim-development-ca:VERSION   the CA for trials, when DEVELOPMENT_CA names its static binary
# The same source gives the same bytes. All times are SOURCE_DATE_EPOCH, by default that of the commit.
# IMAGE names another repository than localhost/sds-shim; SHIM_BINARY and OPENSSL_DIR name what `make build` made.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=${1:-}
image=${IMAGE:-localhost/sds-shim}
binary=${SHIM_BINARY:-target/dist/sds-shim}
openssl=${OPENSSL_DIR:-target/openssl/install}
# What a layer may have, in KiB: the binary's budget and the list of its parts.
budget=5120

fail() { echo "image: $*" >&2; exit 1; }
command -v podman >/dev/null || fail "podman is missing; run make podman"
command -v python3 >/dev/null || fail "python3 is missing; run make python"
[ -x "$binary" ] || fail "$binary is missing: run \`make build\`, or set SHIM_BINARY"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=unknown
epoch=0
if commit=$(git rev-parse HEAD 2>/dev/null); then
  revision=$commit
  [ -z "$(git status --porcelain)" ] || revision=$commit-modified
  epoch=$(git log -1 --format=%ct)
fi
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$binary" "$context/sds-shim"
python3 packaging/image/sbom.py "$binary" "$openssl" >"$context/sds-shim.cdx.json"
mkdir -p target/image && cp "$context/sds-shim.cdx.json" target/image/

build() { # TARGET TAG [BASE]
  podman build --quiet --network none --layers=false --format oci --timestamp "${SOURCE_DATE_EPOCH:-$epoch}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${3:+--build-arg "BASE=$3"} \
    --target "$1" --tag "$2" --file packaging/image/Containerfile "$context" >/dev/null
  echo "image: $2 $(podman image inspect --format '{{.Id}}' "$2")"
}

build binary "$image:$version"
size=$(podman image inspect --format '{{.Size}}' "$image:$version")
# Packed as a registry keeps it; gzip writes no time here.
packed=$(podman save --format oci-archive "$image:$version" | gzip -9n | wc -c)
echo "image: its layer has $((size / 1024)) KiB, $((packed / 1024)) KiB packed; at most $budget KiB are allowed"
[ "$((size / 1024))" -le "$budget" ] || fail "the layer is larger than its budget"
if [ -n "$base" ]; then build sidecar "$image:$version-sidecar" "$base"; fi
if [ -n "${DEVELOPMENT_CA:-}" ]; then
  cp "$DEVELOPMENT_CA" "$context/development-ca"
  build development-ca "$image-development-ca:$version"
fi
