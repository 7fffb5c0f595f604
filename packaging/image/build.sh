#!/usr/bin/env bash
# Builds the container images with podman: `build.sh [BASE]`.
#   sds-shim:VERSION           the static binary on an empty base
#   sds-shim:VERSION-PLATFORM  the same for another platform (arm64, amd64), when PLATFORMS names it beside the machine's own
#   sds-shim:VERSION-index     both under one name: what to push (podman manifest push --all)
#   sds-shim:VERSION-sidecar   BASE, an image of Istio's proxy, with the binary and `sds-shim exec` as its entrypoint
#   sds-shim-development-ca:VERSION   the CA for trials, when DEVELOPMENT_CA names its static binary
# The same source gives the same bytes. All times are SOURCE_DATE_EPOCH, by default that of the commit.
# IMAGE names another repository than localhost/sds-shim; SHIM_BINARY and OPENSSL_DIR name what `make build` made for the
# machine's own platform.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
. packaging/link/architecture.sh
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
architecture
own=$platform
python3 packaging/image/sbom.py "$binary" "$openssl" "$target" target/libc/version >"$context/sds-shim.cdx.json"
mkdir -p target/image && cp "$context/sds-shim.cdx.json" target/image/

build() { # TARGET TAG [BASE]
  local other=()
  [ "$platform" = "$own" ] || other=(--platform "linux/$platform")
  podman build --quiet "${other[@]}" --network none --layers=false --format oci --timestamp "${SOURCE_DATE_EPOCH:-$epoch}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${3:+--build-arg "BASE=$3"} \
    --target "$1" --tag "$2" --file packaging/image/Containerfile "$context" >/dev/null
  echo "image: $2 $(podman image inspect --format '{{.Id}}' "$2")"
}

within_budget() { # TAG
  size=$(podman image inspect --format '{{.Size}}' "$1")
  # Packed as a registry keeps it; gzip writes no time here.
  packed=$(podman save --format oci-archive "$1" | gzip -9n | wc -c)
  echo "image: its layer has $((size / 1024)) KiB, $((packed / 1024)) KiB packed; at most $budget KiB are allowed"
  [ "$((size / 1024))" -le "$budget" ] || fail "the layer is larger than its budget"
}

build binary "$image:$version"
within_budget "$image:$version"
if [ -n "$base" ]; then build sidecar "$image:$version-sidecar" "$base"; fi
if [ -n "${DEVELOPMENT_CA:-}" ]; then
  cp "$DEVELOPMENT_CA" "$context/development-ca"
  build development-ca "$image-development-ca:$version"
fi

members=("$image:$version")
for platform in ${PLATFORMS:-}; do
  architecture "$platform"
  [ "$platform" != "$own" ] || continue
  binary=target/dist$suffix/sds-shim
  [ -x "$binary" ] || fail "$binary is missing: run \`make build ARCH=$platform\`"
  cp "$binary" "$context/sds-shim"
  python3 packaging/image/sbom.py "$binary" "target/openssl$suffix/install" "$target" "target/libc$suffix/version" \
    >"$context/sds-shim.cdx.json"
  cp "$context/sds-shim.cdx.json" "target/image/sds-shim$suffix.cdx.json"
  build binary "$image:$version-$platform"
  within_budget "$image:$version-$platform"
  members+=("$image:$version-$platform")
done
if [ "${#members[@]}" -gt 1 ]; then
  index=$image:$version-index
  ! podman manifest exists "$index" || podman manifest rm "$index" >/dev/null
  podman manifest create "$index" >/dev/null
  for member in "${members[@]}"; do podman manifest add "$index" "containers-storage:$member" >/dev/null; done
  echo "image: $index is for ${#members[@]} platforms"
fi
