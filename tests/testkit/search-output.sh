#!/usr/bin/env bash
# Searches what all shims of a run of the tests have said for tokens and private keys, plain or in base64. What it
# looks for is how each of them begins: whoever tells a part of one that is worth something tells that as well.
# $1 is the directory with the output, $2 how many lines it must hold at least.
set -euo pipefail
marks='eyJ[A-Za-z0-9_-]{16,}|ZXlK[A-Za-z0-9+/]{16,}|BEGIN [A-Z ]*PRIVATE KEY-----|LS0tLS1CRUdJTi|MIGHAgEAMBMG|MIG2AgEAMBAG|MHcCAQEE|MIGkAgEB|MII[A-Za-z0-9+/]{3}IBADANBgkq'
for sample in eyJhbGciOiJSUzI1NiIsImtpZCI6 "-----BEGIN PRIVATE KEY-----" MIGHAgEAMBMGByqGSM49AgEG MIIEvQIBADANBgkqhkiG; do
  grep -qE "$marks" <<<"$sample" || { echo "the search does not find $sample" >&2; exit 1; }
done
lines=$(cat "$1"/*.log | wc -l)
[ "$lines" -gt "${2:-1000}" ] || { echo "only $lines lines of output were kept in $1: nothing was searched" >&2; exit 1; }
if found=$(grep -nE "$marks" "$1"/*.log | cut -c1-120 | head -n 5) && [ -n "$found" ]; then
  echo "a token or a key is in a shim's output:" >&2
  echo "$found" >&2
  exit 1
fi
echo "no token and no key in the $lines lines that the shims of all tests have written"
