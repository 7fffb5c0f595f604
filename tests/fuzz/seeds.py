#!/usr/bin/env python3
"""Writes the seeds of each fuzz target: tests/fuzz/seeds.py DIRECTORY. The same in every run."""
import pathlib
import sys


def field(number, content):
    """A protobuf field of bytes, or of a message."""
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def step(message, piece=255):
    """A request among the steps of the target `requests`."""
    return bytes([0, piece]) + len(message).to_bytes(2, "big") + message


def sotw(*names, nonce="*", error=None):
    message = b"".join(field(3, name) for name in names) + field(5, nonce)
    return message + (field(6, field(2, error)) if error else b"")


def delta(subscribe=(), unsubscribe=(), held=(), nonce="*"):
    message = b"".join(field(3, name) for name in subscribe) + b"".join(field(4, name) for name in unsubscribe)
    return message + b"".join(field(5, field(1, name) + field(2, version)) for name, version in held) + field(6, nonce)


def frame(kind, flags, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + payload


def der(tag, *parts):
    content = b"".join(parts)
    length = [len(content)] if len(content) < 128 else [129, len(content)] if len(content) < 256 else [130, len(content) >> 8, len(content) & 255]
    return bytes([tag, *length]) + content


def revocation_list(*entries, extensions=b""):
    """A revocation list of a CA without a name, with a signature that nobody made."""
    algorithm, time = der(0x30, der(6, b"\x2b\x65\x70")), der(0x17, b"261128212730Z")
    entries = [der(0x30, der(2, serial), time, more) for serial, more in entries]
    fields = [der(2, b"\x01"), algorithm, der(0x30), time, time, *([der(0x30, *entries)] if entries else []), extensions]
    return der(0x30, der(0x30, *fields), algorithm, der(3, b"\0", b"s" * 64))


def extensions(*all_of_them):
    return der(0xA0, der(0x30, *(der(0x30, der(6, b"\x55\x1d" + number), der(1, b"\xff"), der(4, value)) for number, value in all_of_them)))


TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
PUBLISH, ROOTS, REMOVE, LATER = b"\x01\xc3", b"\x01\xc4", b"\x02\x00", b"\x03\x20"
NODE = field(2, field(1, "sidecar~10.0.0.1~sleep.foo~cluster.local") + field(3, b"\x0a\x03abc"))
BLOCK = b"\x83\x41\x12var%2Frun%2Fsocket\x40\x03a%b\x03c%d\x0f\x0d\x02%%\x1f\x80\x01\x01%\x82"
SPELT = b"\x40\x0a:authority\x06%2Fvar\x00\x0b:authority2\x01%"
SAN = b"\x30\x28\x86\x26spiffe://cluster.local/ns/foo/sa/sleep"
USAGE = bytes.fromhex("301406082b0601050507030106082b06010505070302")
QUESTION = b"\x02ca\x04test\0\0\x01\0\x01"
CLAIMS = '{"aud":["istio-ca"],"exp":1900000000,"sub":"system:serviceaccount:foo:sleep"}'

WORKLOAD = field(1, field(1, "spiffe://td/a") + field(2, b"c" * 40) + field(3, b"k" * 20) + field(4, b"b" * 30) + field(5, "h"))
WORKLOAD += field(1, field(1, "spiffe://td/b")) + field(2, b"crl") + field(3, field(1, "other") + field(2, b"d" * 30))

SEEDS = {
    "allocator": [
        b"\x00\x00" + b"\x01\x00\x40\x00" * 6 + b"\x02\x01\xff\x00" * 4 + b"\x00\x00\x00\x00" * 3,
        b"\x00\x01" + b"\x55\x00\xff\x0f\x35\x00\x10\x00\x06\x00\x00\x04\x00\x01\x00\x00" * 6,
        b"\x00\x03" + b"\x09\x00\xff\x3f\x0a\x00\xff\x7f\x0d\x00\x01\x00\x0e\x00\x01\x00" * 4,
        b"\x01" + b"\x00\xff\x01\x01\x80\x00\x02\x40\x02\x03\x10\x00\x04\x00\x04" * 8,
    ],
    "authority": [
        b"\x00" + frame(4, 0, b"%%%%%%") + frame(1, 4, BLOCK) + frame(0, 0, b"A%%%%") + frame(6, 0, b"%" * 8),
        b"\x06" + frame(1, 0x2C, b"\x03\0\0\0\0\x10" + BLOCK + b"%%%") + frame(1, 0x24, b"%%%%%" + BLOCK),
        b"\x02" + frame(1, 0, BLOCK[:7]) + frame(9, 0, BLOCK[7:9]) + frame(9, 0, b"") + frame(9, 4, BLOCK[9:]),
        b"\x01" + frame(1, 4, SPELT) + frame(1, 4, b"\x41\x83%%%") + frame(9, 4, b"\x41\x01%"),
        b"\x03" + frame(1, 4, b"\x01\x7f\xad\x01" + b"%2F" * 100 + b"\x83"),
        # Lengths beyond the machine's: nothing can be so long.
        b"\x04" + frame(1, 4, b"\x41\x7f" + b"\x80" * 9 + b"\x7e%%%") + frame(1, 4, b"\x41\x7f" + b"\x80" * 12 + b"\x00" + b"%" * 130),
    ],
    "bundle": [b"\x01", b"# roots\n\x01\x02\x01", b"\x03\n\x03", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n\x01", b"-----BEGIN CERTIFICATE-----\x01", b"no certificate"],
    "bundle_map": [
        b'{"trust_domains":{"a.example":{"keys":[\x01,\x02]},"b":{"keys":[]}}}',
        b'{"trust_domains":{"a":{"keys":[{"use":"jwt-svid"},{"use":"x509-svid","x5c":["MIIB"]},{}]},"A":{"keys":[\x03]},"c":{}}}',
        b'{"trust_domains":{"a":{"keys":[\x01]},"a":{"keys":[\x02]}}}',
        b"[]",
        b"#\x01\x02\x01",
        b"#\x04\x30\x82\x01\x00",
        b"#\x30\x80\x00\x00" + b"x" * 100,
    ],
    "credential": [
        b"\x07\x01\x03\x04",
        b"\xff# key\n\x02\n# chain\n\x04\x03",
        b"\x00\x03\x01\x02",
        b"\x05\x01\x02\x03\x04",
        b"\x20-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\x03",
        b"\x10  -----BEGIN EC PRIVATE KEY-----\x01-----END\x04",
    ],
    "duration": [text.encode() for text in ("24h0m0s", "1.5h", "300ms", "+1h15m30.5s", "0", ".5s", "7\u00b5s", "9223372036854775807ns", "2562047.79h", "200000000h", "1e3s", "-1h", "5")],
    "environment": [
        b"POD_NAMESPACE=foo\nSERVICE_ACCOUNT=sleep\nCA_ADDR=istiod.istio-system.svc:15012\nTRUST_DOMAIN=td.example\nSECRET_TTL=24h0m0s\n",
        b"POD_NAMESPACE=foo\nSERVICE_ACCOUNT=sleep\nCA_ADDR=[::1]:15010\nISTIOD_SAN=10.0.0.1\nPROV_CERT=/etc/certs\nSDS_SHIM_CA_MTLS=always\nCA_HEADER_X-A=b c\nSDS_SHIM_CA_TIMEOUT=2s\n",
        b"SDS_SHIM_TOKEN_SOURCE=request\nECC_CURVE=P384\nPKCS8_KEY=f\nSDS_SHIM_ALLOW_UIDS=1337, 0\nWORKLOAD_IDENTITY_SOCKET_FILE=s\nSDS_SHIM_ARENA_KIB=4096\nSDS_SHIM_LOG=debug\n",
        b"POD_NAMESPACE=foo\nSERVICE_ACCOUNT=sleep\nWORKLOAD_RSA_KEY_SIZE=2048\nSECRET_GRACE_PERIOD_RATIO=0.5\nSECRET_GRACE_PERIOD_RATIO_JITTER=0.1\nSDS_SHIM_REQUIRE_LOCKED=secret\nISTIO_META_CLUSTER_ID=c\nISTIO_META_CERT_SIGNER=s\nCA_ROOT_CA=SYSTEM\nSDS_SHIM_TOKEN_AUDIENCE=a\n",
        b"POD_NAMESPACE=foo\nSERVICE_ACCOUNT=sleep\nPROXY_CONFIG=discoveryAddress: istiod.istio-system.svc:15012\x01caCertificatesPem:\x01- |\x01  -----BEGIN CERTIFICATE-----\x01meshId: &a x\x01other: *a\x01",
        b'POD_NAMESPACE=foo\nSERVICE_ACCOUNT=sleep\nPROXY_CONFIG={"discoveryAddress":"a:1","caCertificatesPem":["x","y"],"proxyMetadata":{"A":[1,null]}}\n',
        b"POD_NAMESPACE=a/b\nSERVICE_ACCOUNT=..\nCA_ADDR=::1\nSDS_SHIM_TYPO=x\nSECRET_TTL=200000000h\nSDS_SHIM_CA_TIMEOUT=200000000h\nCA_HEADER_AUTHORIZATION=x\n",
    ],
    "foreign_text": [
        b"\x80bad key |, really",
        b"\x80cert:x|-----END",
        b"\x40-----BEGIN EC PRIVATE KEY----- abc",
        b"\x03" + b"\xc3\xa4 " * 20,
        b"\xff" + b"A1b/" * 30 + b" a\nb\x1b[31mc -----END x|-----BEGIN y",
    ],
    "names": [
        b"\x00\0\x07\x81\x80\0\x01\0\x01\0\0\0\0" + QUESTION + b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x01",
        b"\x02\x03\xc0\x0c\0\x05\0\x01\0\0\0\x09\0\x04\x01x\xc0\x0c\x01x\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x01",
        b"\x03\xff" + b"\xc0\x0c\0\x1c\0\x01\0\0\0\x09\0\x10" + b"\xfd" * 16,
        b"\x04127.0.0.1 localhost\n10.0.0.1 ca.test ca # x\nfe80::1%eth0 ca.test.\n",
        b"\x06search a.svc.cluster.local svc.cluster.local .\nnameserver 10.96.0.10\nnameserver fe80::1%2\noptions ndots:5 timeout:1 attempts:3 rotate use-vc\n",
    ],
    "requests": [
        b"\x00" + step(sotw("default", "ROOTCA", nonce="")) + PUBLISH + ROOTS + step(sotw("default", "ROOTCA")) + PUBLISH,
        b"\x00" + PUBLISH + step(NODE + field(4, TYPE) + sotw("default"), 3) + step(sotw("default", "x", error="bad\ncert")) + step(sotw("ROOTCA", nonce="1-0")) + LATER + REMOVE + PUBLISH,
        b"\x00" + PUBLISH + step(sotw("default")) + PUBLISH[:1] + b"\x06" + step(sotw("x", "y", nonce="1-1")) + step(sotw(nonce="1-1")),
        b"\x01" + step(delta(["default", "ROOTCA"], nonce="")) + PUBLISH + ROOTS + step(delta(["x"], ["default"])) + REMOVE + LATER,
        b"\x01" + PUBLISH + step(delta(["default"], held=[("default", "0" * 32)]), 9) + REMOVE + PUBLISH + step(delta([], ["default"])) + PUBLISH,
        b"\x01" + step(delta([str(n) for n in range(64)])) + step(delta(["one more"])),
        b"\x00" + step(field(4, "type.googleapis.com/envoy.config.cluster.v3.Cluster")),
        b"\x00" + step(field(3, "") * 600, 100),
        b"\x01" + step(field(5, "") * 600, 1),
    ],
    "revocation": [
        revocation_list(),
        revocation_list((b"\x01", b""), (b"\x02", der(0x30, der(0x30, der(6, b"\x55\x1d\x15"), der(4, der(10, b"\x01")))))),
        revocation_list(extensions=extensions((b"\x23", der(0x30, der(0x80, b"key"))), (b"\x14", der(2, b"\x05")))),
        revocation_list(extensions=extensions((b"\x1c", der(0x30, der(0x81, b"\xff"))), (b"\x1b", der(2, b"\x05")))),
        b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n",
    ],
    "svid": [
        b"#\x01-----BEGIN CERTIFICATE-------END CERTIFICATE-----#\x02",
        b"\x00\x01\x05",
        b"\x04\x00\x06",
        b"\x01\x01\x05",
        b"\x02\x01\x05",
        b"\x0c\x01\x05",
        b"\x00\x04\x05",
        b"\x10\x01\x05\x01" + bytes([len(SAN)]) + SAN + b"\x02" + bytes([len(USAGE)]) + USAGE + b"\x05\x02\x30\x00",
        b"\x00\x01\x05\x05\x05\x30\x03\x01\x01\xff\x07\x04\x03\x02\x02\x04",
        # Not DER, but OpenSSL takes it for TRUE.
        b"\x00\x01\x05\x05\x05\x30\x03\x01\x01\x01",
        b"\x00\x01\x05\x04\x06\x30\x81\x03\x01\x01\xff",
        b"#\x01#\x02",
        b"#\x01\x02#\x02\x02",
        b"#\x01\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----#\x02",
        b"#\x02",
    ],
    "token": [
        CLAIMS.encode(),
        b'{"aud":"istio-ca"}',
        b'{"aud":["vault","x\\n"],"exp":1000.5,"sub":"system:serviceaccount:a/b:.."}',
        b'{"aud":"istio-ca","exp":-1e300}',
        b'{"sub":"joe","exp":"soon"}',
        b"e30.e30.c2ln\n",
        b"e30.W10.c2ln",
        b"a.b.c.d",
    ],
    "workload_api": [
        b"\x07" + WORKLOAD,
        b"\xff" + WORKLOAD + WORKLOAD,
        b"\x01" + field(1, "") + field(3, "") + b"\x10\x01" + b"\x19" + b"x" * 8 + b"\x25abcd",
        b"\x00\0" + len(WORKLOAD).to_bytes(4, "big") + WORKLOAD + b"\0\0\0\0\0",
        b"\x06\1\0\0\0\0",
        b"\x06\0\xff\xff\xff\xff",
    ],
}

if __name__ == "__main__":
    for target, seeds in SEEDS.items():
        directory = pathlib.Path(sys.argv[1], target)
        directory.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (directory / f"seed-{number:02}").write_bytes(seed)
