# Sourced by build.sh: takes what neither the shim nor a test uses out of the tables of OpenSSL's default provider, which
# no option of Configure does. OpenSSL makes an object of each entry at the start (some 18,000 instructions and 400 bytes),
# and the linker keeps its code.
#
# What is left is TLS 1.2 and 1.3 with all that OpenSSL offers by itself but for ChaCha20 and CBC's stitched ciphers, which
# have the same ciphers beside them; certificates with keys and signatures of RSA, EC, Ed25519 and Ed448; PKCS#8.

# trim FILE NAME…: takes out the entries that these (extended regular expressions) name, each of which must be there.
trim() {
  local file=$1 entry='^ *(\{ |ALGC?\(|ENCODER|DECODER)' name
  shift
  for name; do
    grep -E "$entry" "$file" | grep -E "$name" >/dev/null || fail "this OpenSSL has no $name in $(basename "$file")"
    # With all of its lines.
    sed -i -E "/$entry/{/$name/{:a;/(\}|\)),\$/!{N;ba};d}}" "$file"
  done
}

trim_providers() {
  local providers=$1
  # Digests of no signature that a certificate has, and those that only KMAC and LMS take.
  trim "$providers/defltprov.c" SHA2_256_192, SHA2_512_224, SHA2_512_256, NAMES_KECCAK_ CSHAKE_
  # Modes that TLS does not have. AES-256 in CTR and ECB are for OpenSSL's own generator of random numbers, which
  # the tests' servers have.
  trim "$providers/defltprov.c" _CBC_CTS, _OFB, '_CFB[18]?,' 'AES_(192|128)_CTR,' 'AES_(192|128)_ECB,' _XTS, \
    'AES_192_(CBC|GCM|CCM),' '_WRAP(_PAD)?(_INV)?,' '_HMAC_SHA[0-9]+(_ETM)?,'
  trim "$providers/defltprov.c" NAMES_GMAC, NAMES_KMAC_
  # TLS derives with the other names of these.
  trim "$providers/defltprov.c" 'HKDF_SHA[0-9]+,' PKCS12KDF, kdf_tls1_prf_keyexch kdf_hkdf_keyexch \
    'TLS1_PRF, .*keymgmt' 'HKDF, .*keymgmt'
  trim "$providers/defltprov.c" HASH_DRBG, NAMES_HMAC_DRBG, TEST_RAND,
  trim "$providers/defltprov.c" 'RSA_SHA512_(224|256),' 'ED(25519|448)(ph|ctx),'
  trim "$providers/defltprov.c" rsa_asym_kem ecx_asym_kem ec_asym_kem
  trim "$providers/encoders.inc" ENCODER_TEXT '(msblob|pvk)\)' '"(X25519|X448|ML-KEM-[0-9]+)"'
  trim "$providers/decoders.inc" ', (msblob|pvk),' '"ML-KEM-[0-9]+"' '"X(25519|448)", der, PrivateKeyInfo'
}
