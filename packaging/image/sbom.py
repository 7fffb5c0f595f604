#!/usr/bin/env python3
"""Prints what is linked into the shipped binary as CycloneDX JSON: `sbom.py BINARY OPENSSL_DIR TARGET LIBC`, where LIBC is
the file with the version of libc that a cross-compiled binary has.

The crates are those of `cargo tree` for the binary, with the checksums of Cargo.lock; beside them OpenSSL, libc and
Rust's standard library. The same source gives the same text: it holds no time and no random number."""
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def component(name, version, purl, licence=None, sha256=None):
    found = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    if licence:
        # Some crates still write the old form of "OR".
        found["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    if sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return found


def crates(target):
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    tree = run("cargo", "tree", "--locked", "--package", "sds-shim", "--target", target, "--edges", "normal,no-proc-macro",
               "--prefix", "none", "--format", "{p}\t{l}")
    found = {}
    for line in tree.splitlines():
        package, licence = line.removesuffix(" (*)").split("\t")
        name, version = package.split(" ")[:2]
        found[name, version.removeprefix("v")] = licence
    return [component(name, version, f"pkg:cargo/{name}@{version}", licence, checksums[name, version])
            for (name, version), licence in sorted(found.items()) if name != "sds-shim"]


def openssl(directory):
    header = (pathlib.Path(directory) / "include/openssl/opensslv.h").read_text()
    version = re.search(r'OPENSSL_FULL_VERSION_STR "([^"]+)"', header)[1]
    return component("openssl", version, f"pkg:generic/openssl@{version}", "Apache-2.0")


def libc(unpacked):
    licence = "LGPL-2.1-or-later"
    try:
        # The distribution's version, which tells which fixes are in it.
        version = unpacked.read_text().strip() if unpacked.exists() else run(
            "dpkg-query", "--show", "--showformat", "${Version}", "libc6-dev")
        return component("glibc", version, f"pkg:deb/debian/glibc@{version}", licence)
    except (OSError, subprocess.CalledProcessError):
        version = run("getconf", "GNU_LIBC_VERSION").removeprefix("glibc ")
        return component("glibc", version, f"pkg:generic/glibc@{version}", licence)


def standard_library():
    version = re.search(r"release: (\S+)", run("rustc", "-vV"))[1]
    return component("rust-std", version, f"pkg:generic/rust@{version}", "MIT OR Apache-2.0")


def main(binary, openssl_directory, target, libc_version):
    own = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    digest = hashlib.sha256(pathlib.Path(binary).read_bytes()).hexdigest()
    name = f"pkg:generic/sds-shim@{own['version']}"
    shim = component("sds-shim", own["version"], name, own["license"], digest) | {"type": "application"}
    parts = [*crates(target), openssl(openssl_directory), libc(pathlib.Path(libc_version)), standard_library()]
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{name}#{digest}')}",
        "version": 1,
        "metadata": {"component": shim},
        "components": parts,
        "dependencies": [{"ref": name, "dependsOn": [part["purl"] for part in parts]}],
    }
    json.dump(bom, sys.stdout, indent=1)
    print()


main(*sys.argv[1:])
