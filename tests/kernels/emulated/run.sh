#!/bin/sh
# The acceptance scene and the tests on another architecture, in QEMU: cross-compiles the test programs, puts them with
# this tree, Envoy and a minimal Debian into a guest, and runs each of them there. It prints how each of them ended;
# target/emulated/console has what those that failed have said. The guest's processors are interpreted, so all of it takes
# hours and is no part of CI; the guest has 10 GiB of memory (MEMORY, in MiB). PROGRAMS="sds renewal" runs some: the names are those of `cargo test --test`, and `demo`.
#
# Left out are programs whose tools have no place in the guest: container engines, package builds, a second emulation,
# Go's and Python's peers; and in the others the tests that `without` names, which need such a peer or a disk. What a test
# needs besides and does not find, it says and skips.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
. "$root/packaging/link/architecture.sh"
architecture "${1:-arm64}"
as=emulated
. "$root/tests/testkit/install.sh"
[ "$platform" = arm64 ] || fail "there is no guest for $platform"
[ -n "$suffix" ] || fail "$platform is this machine's own architecture: run \`make test\`"

kernel=$root/target/kernels/${KERNEL:-6.12-$platform}
for part in "$kernel/vmlinuz" "$root/target/kernels/busybox-$platform" "$root/target/dist$suffix/sds-shim" "$root/target/envoy$suffix/envoy"; do
    [ -s "$part" ] || fail "$part is missing: run \`make test-emulated\`"
done
command -v qemu-system-aarch64 >/dev/null || fail "there is no qemu-system-aarch64 (Debian: qemu-system-arm)"
directory=$root/target/emulated
built=$root/target/$target/debug
left_out='containers install kubernetes kernels repository workload_api spire asan bench floor fleet goals drift'
without='prometheus:: a_scrape_tells certificates_with_the_same_serial pilot_agent:: grpc_go_takes mode_and_group_are_as'
suite=bookworm

for program in mmdebstrap cpio; do
    command -v "$program" >/dev/null || packages "$program" "$program"
done
mkdir -p "$directory"

# Only unpacked: what runs its packages' scripts would be this emulation again. So nothing in it is configured.
system='base-files base-passwd bash bsdutils busybox-static ca-certificates coreutils curl dash diffutils findutils gawk gdb git
grep gzip iproute2 iptables libc-bin mount openssl passwd procps python3-minimal sed strace tar util-linux'
if [ ! -s "$directory/$platform.tar" ] || [ "$(cat "$directory/$platform.packages")" != "$system" ]; then
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' "Release: $suite" | head -n 1)
    [ -n "$archive" ] || fail "this machine's apt has no archive of Debian $suite to make a guest from"
    say "making a minimal Debian $suite for $platform (about 90 MB to fetch, a minute)"
    retry mmdebstrap --quiet --architectures="$platform" --variant=extract \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --include="$(echo "$system" | tr '\n ' ',,' | sed 's/,$//')" \
        "$suite" "$directory/$platform.new.tar" "$archive" || fail "mmdebstrap could not make it; its message is above"
    mv -f "$directory/$platform.new.tar" "$directory/$platform.tar"
    echo "$system" >"$directory/$platform.packages"
fi

# The tests' own names for what cargo runs, with the package each of them belongs to, whose directory it starts in.
say "building the test programs for $platform"
variable=$(echo "$target" | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${variable}_LINKER=$cc" "${variable}_OPENSSL_DIR=$root/target/openssl$suffix/install" "${variable}_OPENSSL_STATIC=1"
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
cd "$root"
cargo --locked build --quiet --target "$target" --package testkit --package development-ca --bins
cargo --locked test --quiet --no-run --workspace --all-targets --target "$target" --message-format json \
    >"$directory/messages" || fail "the test programs cannot be built for $platform; cargo's message is above"
python3 -c '
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    is_test = message.get("profile", {}).get("test") and set(message["target"]["kind"]) & {"lib", "test"}
    if message.get("executable") and is_test:
        print(message["target"]["name"], os.path.dirname(message["manifest_path"]), message["executable"])
' <"$directory/messages" >"$directory/all"
for wanted in ${PROGRAMS:-}; do
    [ "$wanted" = demo ] || grep -q "^$wanted " "$directory/all" || fail "PROGRAMS: there is no $wanted; there are: $(cut -d' ' -f1 "$directory/all" | sort -u | paste -sd' ')"
done
for wanted in ${PROGRAMS:-$(cut -d' ' -f1 "$directory/all" | awk '!seen[$0]++')}; do
    case " $left_out " in *" $wanted "*) ;; *) grep "^$wanted " "$directory/all" || true ;; esac
done >"$directory/programs"
case " ${PROGRAMS:-demo} " in *" demo "*) demo=1 ;; *) demo= ;; esac
[ -s "$directory/programs" ] || [ -n "$demo" ] || fail "PROGRAMS names only what is left out here: $left_out"

say "packing the guest"
scratch=$(mktemp -d "$directory/pack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# All of the tree at the same place, since programs have paths of it in them.
tree=$scratch/root$root
mkdir -p "$tree/target/debug/deps" "$scratch/root/emulated" "$scratch/boot/bin"
tar -x -f "$directory/$platform.tar" -C "$scratch/root" --exclude='./dev/*'
git ls-files -z | xargs -0 cp --parents -t "$tree"
mkdir -p "$tree/target/$target" "$tree/target/dist" "$tree/target/envoy"
ln -s ../debug "$tree/target/$target/debug"
strip() { "${tools}strip" -o "$2" "$1"; }
for program in "$built"/*; do
    if [ -f "$program" ] && [ -x "$program" ]; then strip "$program" "$tree/target/debug/${program##*/}"; fi
done
cut -d' ' -f3 "$directory/programs" | while read -r program; do
    strip "$program" "$tree/target/debug/deps/${program##*/}"
done
cp "$root/target/dist$suffix/sds-shim" "$tree/target/dist/sds-shim"
cp "$root/target/envoy$suffix/envoy" "$tree/target/envoy/envoy"
echo "127.0.0.1 localhost" >"$scratch/root/etc/hosts"
[ -s "$scratch/root/etc/passwd" ] || cp "$scratch/root/usr/share/base-passwd/passwd.master" "$scratch/root/etc/passwd"
[ -s "$scratch/root/etc/group" ] || cp "$scratch/root/usr/share/base-passwd/group.master" "$scratch/root/etc/group"
cp "$directory/programs" "$scratch/root/emulated/programs"
cp tests/kernels/emulated/suite "$scratch/root/emulated/suite"
{
    echo "root=$root"
    echo "demo=$demo"
    # shellcheck disable=SC2086 # several words
    echo "tests='${TESTS:-}$(printf ' --skip %s' $without)'"
} >"$scratch/root/emulated/settings"

cp tests/kernels/emulated/init "$scratch/boot/init"
cp "$root/target/kernels/busybox-$platform" "$scratch/boot/bin/busybox"
tar -c -f "$scratch/boot/root.tar" -C "$scratch/root" .
rm -rf "$scratch/root"
(cd "$scratch/boot" && find . | cpio --quiet -o -H newc -R 0:0) >"$scratch/initramfs"
rm -rf "$scratch/boot"

say "starting the guest; target/emulated/console has what it says"
started=$(date +%s)
qemu-system-aarch64 -machine virt -cpu max,pauth-impdef=on -accel tcg,thread=multi -smp 2 -m "${MEMORY:-10240}" -nodefaults \
    -display none -serial stdio -no-reboot -kernel "$kernel/vmlinuz" -initrd "$scratch/initramfs" \
    -append "console=ttyAMA0 quiet loglevel=1 panic=-1" </dev/null | sed -u 's/\r$//' | tee "$directory/console" \
    | grep --line-buffered -a '^emulated: ' || true
say "$(($(date +%s) - started)) s in the guest"
end=$(sed -n 's/^emulated: end, //p' "$directory/console")
[ -n "$end" ] || fail "the guest ended before its last test; target/emulated/console has what it said"
[ "$end" = "0 failed" ] || fail "$end; target/emulated/console has what they said"
