#!/usr/bin/env bash
# A CA by cfssl issues workload certificates that live for a short time: "expiry": "10m", and "5m" for a batch job. They are
# dated back for clocks that are slow, as by any CA; nothing in the profile says how far.
#
# Guess:    each ends as long after it was issued as its profile says, to the second. What is dated back comes on top, as with
#           step-ca and Istio's CA.
# Happens:  cfssl 1.6.5 counts the expiry from notBefore, which is five minutes ago, and rounds the present to the nearest
#           minute first. "10m" ends after 4.5 to 5.5 minutes. "5m" ends half a minute ago or in half a minute, depending on the
#           second at which it was asked for; the answer is a success each time.
# Matters:  a rollout that passes at :45 fails at :15, with "certificate has expired" of one that is seconds old, and clocks are
#           blamed. Whoever renews at a share of what the profile says is too late. Add the backdate to the expiry ("backdate" in
#           the profile, 5m unless set), and read the lifetime from the certificate.
# Source:   github.com/cloudflare/cfssl 1.6.5, signer.FillTemplate; its lines are the same in 1.7.1, which takes Go 1.27.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
GOBIN=$work go install github.com/cloudflare/cfssl/cmd/cfssl@v1.6.5
./cfssl version | head -n 1
cat >profiles.json <<'JSON'
{"signing": {"default": {"expiry": "1h", "usages": ["digital signature", "server auth", "client auth"]}, "profiles": {
  "5m": {"expiry": "5m", "usages": ["digital signature", "server auth", "client auth"]},
  "10m": {"expiry": "10m", "usages": ["digital signature", "server auth", "client auth"]}}}}
JSON
echo '{"CN": "CA", "key": {"algo": "ecdsa", "size": 256}}' | ./cfssl gencert -loglevel 5 -initca - >ca.json
echo '{"CN": "a", "hosts": ["spiffe://td/a"], "key": {"algo": "ecdsa", "size": 256}}' | ./cfssl genkey -loglevel 5 - >request.json

timeout 120 python3 - <<'PYTHON'
import datetime, json, ssl, subprocess, sys, time

ca, request = json.load(open("ca.json")), json.load(open("request.json"))
for name, text in (("ca.pem", ca["cert"]), ("ca.key", ca["key"]), ("a.csr", request["csr"])): open(name, "w").write(text)

def left(profile):
    """When it is asked for, and how long the certificate is valid from then on, in seconds."""
    now = time.time()
    answer = subprocess.run(["./cfssl", "sign", "-loglevel", "5", "-ca", "ca.pem", "-ca-key", "ca.key", "-config", "profiles.json",
                             "-profile", profile, "a.csr"], check=True, capture_output=True).stdout
    open("a.pem", "w").write(json.loads(answer)["cert"])
    return now % 60, ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert("a.pem")["notAfter"]) - now

same = True
# One in the first half of a minute, one in the second: the rounding shows.
for first, last in ((5, 25), (35, 55)):
    second = time.time() % 60
    if not first <= second < last: time.sleep((first - second) % 60)
    for profile, expected in (("10m", 300), ("5m", 0)):
        second, seconds = left(profile)
        print(f"issued at second {second:.0f} of a minute by \"expiry\": \"{profile}\": ends {seconds:+.0f} s from then")
        same &= abs(seconds - (expected + (60 - second if second >= 30 else -second))) < 3
if not same: sys.exit("the behaviour has changed")
PYTHON
