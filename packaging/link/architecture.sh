# What the builds for one architecture share; sourced, with $root set. `architecture NAME` takes a name as people or
# containers write it, by default the machine's own, and sets
#   machine   the kernel's name (x86_64, aarch64), as in OpenSSL's targets
#   target    Rust's name
#   platform  the containers' and Debian's name (amd64, arm64)
#   suffix    what names of directories end with: nothing for the machine's own
#   tools     what names of the compiler's tools begin with: nothing for the machine's own
#   cc        the compiler
# shellcheck shell=sh disable=SC2034
architecture() {
    case ${1:-$(uname -m)} in
        x86_64 | amd64) machine=x86_64 platform=amd64 ;;
        aarch64 | arm64) machine=aarch64 platform=arm64 ;;
        *) echo "ARCH=${1:-$(uname -m)}: sds-shim is built for amd64 (x86_64) and arm64 (aarch64) only" >&2; return 1 ;;
    esac
    target=$machine-unknown-linux-gnu
    if [ "$machine" = "$(uname -m)" ]; then
        suffix='' tools='' cc=cc
    else
        suffix=-$platform tools=$machine-linux-gnu- cc=$machine-linux-gnu-gcc
    fi
}

has_compiler() {
    [ -z "$tools" ] || echo '#include <stdlib.h>' | "$cc" -E -x c - >/dev/null 2>&1
}

has_target() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]
}
