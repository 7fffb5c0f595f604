#!/bin/sh
# Installs the distribution's libssl with its headers and pkg-config, for the plain build. Quick when they are there.
set -eu

if pkg-config --exists libssl 2>/dev/null; then
    exit 0
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/testkit/install.sh"

packages "libssl's headers or pkg-config" libssl-dev pkg-config
