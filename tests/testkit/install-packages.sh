#!/bin/sh
# Installs Debian packages, unless all of the programs that are wanted of them are there.
# Usage: install-packages.sh "package..." program...
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin

missing() {
    shift
    for program; do
        command -v "$program" >/dev/null || printf ' %s' "$program"
    done
}

lacking=$(missing "$@")
[ -n "$lacking" ] || exit 0
. "$root/tests/testkit/install.sh"
# shellcheck disable=SC2086 # several words
packages "${lacking# }" $1
lacking=$(missing "$@")
[ -z "$lacking" ] || fail "$1: installed, and there is still no$lacking"
