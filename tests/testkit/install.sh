# What the scripts share that install something. Each sources this once it has found that there is something to do, and
# names the top of the tree as $root before. Two runs of one of them in one tree, from two terminals, wait for each other:
# whoever has waited starts again from the beginning, and finds what the other has installed. So do two apt-get.
# shellcheck shell=sh
: "${root:?}" "${as:=$(basename "$0" .sh)}"

say() { echo "$as: $*" >&2; }
fail() { say "$*"; exit 1; }

# Once more, and again, when it fails: a download may, and apt-get does when another one reads its lists.
retry() {
    for pause in ${pauses:-5 20}; do
        "$@" && return
        say "again in $pause s: $*"
        sleep "$pause"
    done
    "$@"
}

debian() {
    DEBIAN_FRONTEND=noninteractive flock -o "$root/target/install-apt.lock" \
        apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null
}

# Installs Debian packages; the first argument says what is missing of them.
packages() {
    missing=$1
    shift
    [ "$(id -u)" = 0 ] || fail "missing: $missing; install it (Debian: apt-get install $*) or run this as root once"
    command -v apt-get >/dev/null || fail "missing: $missing, and there is no apt-get to install $* with"
    say "installing $* (apt-get)"
    retry debian update || fail "apt-get could not update its package lists; its message is above"
    retry debian install -y --no-install-recommends "$@" || fail "apt-get could not install $*; its message is above"
}

# A user's PATH lacks these, where Debian keeps some of the programs that are looked for.
PATH=$PATH:/usr/sbin:/sbin
# Go fetches the Go that a module wants, whatever it is told elsewhere.
export PATH GOTOOLCHAIN=auto

# In a shell, what is to be done at the end is done after a signal only when that is caught.
trap 'exit 1' HUP INT TERM

lock=$root/target/$as.lock
if [ "${SHIM_INSTALLING:-}" != "$lock" ]; then
    mkdir -p "$root/target"
    # Held by whatever the script starts as well, until the last of it has ended.
    exec 9>"$lock"
    flock -n 9 || { say "waiting for another run of this in $root"; flock 9; }
    SHIM_INSTALLING=$lock exec "$0" "$@"
fi
