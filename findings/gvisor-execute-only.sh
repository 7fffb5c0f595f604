#!/usr/bin/env bash
# A static program of root with mode 0111, started as another user in a container: by runc, and by gVisor's runsc.
#
# Guess:    it runs in both. To execute a file takes the right to execute it; to read it is another right, which only scripts
#           and dynamic loaders need.
# Happens:  runsc refuses it: "creating process: failed to load /bin/busybox: permission denied". gVisor's kernel opens a
#           program for reading in the name of the container's user. With runc, the same files and configuration run.
# Matters:  0111 keeps other processes of the same user from reading a program or attaching to it. An image that relies on
#           it does not start where the RuntimeClass is gVisor's, and the message names neither mode nor reading; there it
#           takes a layer with mode 0555.
# Source:   runsc 0.0~20240729 of Debian 13, runc 1.1.5 and busybox-static 1.35.0 of Debian 12. Needs root.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "this needs root" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
mkdir -p root/bin root/proc unpacked
apt-get -qq -o APT::Sandbox::User=root download runc=1.1.5+ds1-1+deb12u1 busybox-static=1:1.35.0-4+deb12u1+b1
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' | head -n 1)
/usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file \
  "${archive%/}/pool/main/g/golang-gvisor-gvisor/runsc_0.0~20240729.0-4+b7_amd64.deb" runsc.deb \
  SHA256:3c25a5130dfac2f71237d5baad56ac86a255de87a0400f11b36a555156dc325a
for package in ./*.deb; do dpkg-deb --extract "$package" unpacked; done
runc=$(find unpacked -type f -path '*bin/runc') runsc=$(find unpacked -type f -path '*bin/runsc')
install -m 0755 "$(find unpacked -type f -path '*bin/busybox')" root/bin/busybox
"$runc" --version | head -n 1
"$runsc" --version | head -n 1
cat >config.json <<'END'
{ "ociVersion": "1.0.2", "root": { "path": "root", "readonly": true },
  "process": { "user": { "uid": 1000, "gid": 1000 }, "cwd": "/", "env": [], "args": ["/bin/busybox", "echo", "it runs"] },
  "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
  "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network" }] } }
END

started() { # NAME PROGRAM OPTIONS...
  local name=$1 said
  shift
  said=$(timeout 60 "$@" run --bundle "$work" "finding-$$-$name" </dev/null 2>&1 | tail -n 1) || true
  echo "$name, mode $mode: $said" >&2
  case $said in "it runs") echo runs ;; *"permission denied"*) echo refused ;; *) echo "$said" ;; esac
}

seen=
for mode in 0555 0111; do
  chmod "$mode" root/bin/busybox
  seen+="$mode: runc $(started "runc-$mode" "$runc" --root "$work/runc-state")"
  seen+=", runsc $(started "runsc-$mode" "$runsc" --root "$work/runsc-state" --network=none --ignore-cgroups); "
done
echo "$seen"
[ "$seen" = "0555: runc runs, runsc runs; 0111: runc runs, runsc refused; " ] || { echo "the behaviour has changed" >&2; exit 1; }
