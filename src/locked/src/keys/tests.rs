use super::*;

#[test]
fn keys_are_written_as_openssl_writes_them() {
    for key in [
        generate_ec_key(Nid::X9_62_PRIME256V1),
        generate_ec_key(Nid::SECP384R1),
        generate_ec_key(Nid::SECP521R1),
        generate_rsa_key(2048),
    ] {
        let key = key.unwrap();
        assert_eq!(write_private_key(&key, Structure::Pkcs8).unwrap(), key.private_key_to_pem_pkcs8().unwrap());
        let traditional = match key.id() {
            Id::RSA => key.rsa().unwrap().private_key_to_pem().unwrap(),
            _ => key.ec_key().unwrap().private_key_to_pem().unwrap(),
        };
        assert_eq!(write_private_key(&key, Structure::Traditional).unwrap(), traditional);
        assert!(public_half(&key).unwrap().public_eq(&key));
        for pem in [traditional, key.private_key_to_pem_pkcs8().unwrap()] {
            assert!(read_private_key(&pem).unwrap().public_eq(&key));
            assert_eq!(pkcs8(&pem).unwrap(), key.private_key_to_pkcs8().unwrap());
        }
    }
}

#[test]
fn invalid_keys_are_rejected() {
    for text in ["", "text", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        assert!(read_private_key(text.as_bytes()).is_err(), "{text:?}");
        assert!(pkcs8(text.as_bytes()).is_err() || text.contains("AAAA"), "{text:?}");
    }
}
