#!/usr/bin/env bash
# Builds the trimmed static OpenSSL of the shipped binary into target/openssl; does nothing when it is there.
# `build.sh arm64` (or amd64) builds it for that architecture, into target/openssl-arm64 where the machine is another.
# What is left out: whatever a TLS 1.2/1.3 client with ECDSA and RSA, and the writing of keys, CSRs and certificates,
# does not need. Each option is counted in kilobytes of mapped memory, of which the whole process may have 8,192.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/packaging/link/architecture.sh"
architecture "${1:-}"
directory=$root/target/openssl$suffix
recipe=$(cat "$root/packaging/openssl/"{build.sh,trim.sh,Cargo.toml} | sha256sum | cut -c1-16)
[ "$(cat "$directory/recipe" 2>/dev/null)" = "$recipe" ] && exit 0
as=openssl$suffix
. "$root/tests/testkit/install.sh"
. "$root/packaging/openssl/trim.sh"
cd "$root"

# OpenSSL's own scripts want modules that Debian's smallest perl lacks, and a compiler may come without libc's headers.
equipped() {
  perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2>/dev/null && command -v make >/dev/null &&
    echo '#include <stdlib.h>' | cc -E -x c - >/dev/null 2>&1
}
equipped || packages "perl with its modules, make, or a C compiler with libc's headers" perl make gcc libc6-dev
equipped || fail "perl, make and gcc are installed, and one of them still does not work"
has_compiler || fail "there is no compiler for $platform: packaging/link/install.sh $platform installs it"
cargo fetch --quiet --locked --manifest-path packaging/openssl/Cargo.toml ||
  fail "cargo could not fetch OpenSSL's source; its message is above"
source=$(cargo metadata --format-version 1 --locked --manifest-path packaging/openssl/Cargo.toml |
  grep -o '"manifest_path":"[^"]*/openssl-src-[^"/]*/Cargo.toml"' | head -n 1 | cut -d'"' -f4) ||
  fail "cargo does not say where it has OpenSSL's source"
source=$(dirname "$source")/openssl
say "building the trimmed static library from $(basename "$(dirname "$source")"), once; it takes 1 to 3 minutes"

options="no-apps no-docs no-shared no-module no-tests no-comp no-zlib no-legacy no-dso no-dtls no-srp no-srtp no-psk
  no-sm2 no-sm3 no-sm4 no-aria no-bf no-blake2 no-camellia no-cast no-des no-dsa no-gost no-idea no-md2 no-md4 no-mdc2
  no-rc2 no-rc4 no-rc5 no-rmd160 no-scrypt no-seed no-siphash no-whirlpool no-ocb no-siv no-cms no-ts no-ct no-cmp
  no-http no-ocsp no-quic no-ml-dsa no-slh-dsa no-lms no-argon2 no-ui-console no-nextprotoneg no-ec2m no-rfc3779
  no-autoload-config no-multiblock no-async no-ktls no-dh no-thread-pool no-default-thread-pool
  no-sock no-integrity-only-ciphers no-tls-deprecated-ec no-ech no-hpke no-tls1 no-tls1_1 no-chacha no-poly1305 no-cmac
  no-sskdf no-snmpkdf no-srtpkdf no-sshkdf no-x963kdf no-kbkdf no-x942kdf no-krb5kdf no-hmac-drbg-kdf no-pvkkdf
  no-ssl-trace no-secure-memory"
known=$(cd "$source" && sed -n '/^my @disablables/,/^);/p' Configure)
chosen=""
for option in $options; do
  # Names come and go between OpenSSL's releases; Configure would refuse one that it does not know.
  if grep -qE "\"${option#no-}(\(.*\))?\"" <<<"$known" || [[ $option == no-tls1* ]]; then chosen="$chosen $option"; fi
done
build=$directory/build
rm -rf "$build" "$directory/stage" && mkdir -p "$build"
cp -r "$source" "$build/source"
source=$build/source
cd "$build"
# Private operations of RSA make tables of 64 powers of a number, but with x86-64's own code 32. The private key's memory
# is a few pages, of which larger tables would take half: OpenSSL's choice for shorter cache lines makes 32 everywhere.
line='define MOD_EXP_CTIME_MIN_CACHE_LINE_WIDTH'
sed -i "s/$line (64)/$line (32)/" source/crypto/bn/bn_local.h
grep -q "$line (32)" source/crypto/bn/bn_local.h || fail "this OpenSSL says elsewhere how large a table of powers is"
trim_providers source/providers
# OpenSSL asks the assembler what it knows. Told that it knows AVX2 and no AVX-512, it leaves out 750 KiB of code that
# would only speed up bulk encryption, of which there are a few KiB in hours.
# The library remembers how it was compiled, and messages name source files. Both without where things lie here, so that
# the same source gives the same bytes everywhere.
compiler=$(command -v "$cc") || fail "there is no $cc"
mkdir bin
# Small code suits what runs once. What runs a million instructions a handshake is built for speed: it takes half as many,
# for 20 KiB; where gcc writes small code, it has x86-64 clear memory byte by byte.
fast='mem ml_kem/ml_kem ec/curve25519 ec/ecp_nistz256 lhash/lhash hashtable/hashtable'
for file in $fast; do [ -e "source/crypto/$file.c" ] || fail "this OpenSSL has no crypto/$file.c"; done
cat >bin/cc <<END
#!/bin/sh
case " \$* " in *" -Wa,-v "*) echo "GNU assembler version 2.24" && exit ;; esac
for fast in $fast; do case "\$*" in *"/crypto/\$fast.c"*) set -- "\$@" -O2 ;; esac; done
exec "$compiler" "\$@" "-ffile-prefix-map=$(realpath --relative-to="$PWD" "$source")=openssl" \\
  "-ffile-prefix-map=$source=openssl"
END
chmod +x bin/cc
export PATH=$build/bin:$PATH SOURCE_DATE_EPOCH=0
# shellcheck disable=SC2086
CC=cc AR=${tools}ar RANLIB=${tools}ranlib "$source/Configure" $chosen --prefix=/usr --libdir=lib --openssldir=/etc/ssl "linux-$machine" \
  -Os -fPIC -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables -fno-unwind-tables >configure.log 2>&1 ||
  { tail -n 20 configure.log >&2; fail "OpenSSL cannot be configured"; }
make -s -j"$(nproc)" build_libs >make.log 2>&1 || { tail -n 30 make.log >&2; fail "OpenSSL cannot be built"; }
make -s install_dev DESTDIR="$directory/stage" >>make.log 2>&1 ||
  { tail -n 30 make.log >&2; fail "OpenSSL cannot be put into $directory"; }
# What was there before has served until now, and must not be taken for the new one.
rm -rf "$directory/recipe" "$directory/install"
mv "$directory/stage/usr" "$directory/install"
cd "$directory" && rm -rf stage "$build"
echo "$recipe" >"$directory/recipe"
say "ready"
