use super::{ca::ROOT_FILE, *};
use std::{collections::BTreeMap, time::Duration};

fn config(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut env = BTreeMap::from([("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep")]);
    env.extend(variables.iter().copied());
    Config::from_env(&env).map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]).unwrap();
    assert_eq!((config.ca.host.as_str(), config.ca.port), ("istiod.istio-system.svc", 15012));
    assert_eq!(config.ca.server_name, ServerName::Dns("istiod.istio-system.svc".to_owned()));
    assert_eq!(config.ca.roots, CaRoots::File(ROOT_FILE.into()));
    assert_eq!(config.ca.ttl, Duration::from_secs(86_400));
    assert_eq!(config.ca.mutual_tls, MutualTls::Auto);
    assert_eq!(config.ca.cluster_id, "Kubernetes");
    assert_eq!(config.identity.spiffe_id.unwrap().as_str(), "spiffe://cluster.local/ns/foo/sa/sleep");
    assert_eq!(config.sds.socket, PathBuf::from("./var/run/secrets/workload-spiffe-uds/socket"));
    assert_eq!(config.token.file, Some(TOKEN_FILE.into()));
    assert_eq!(config.rotation.grace_period, None);
    assert_eq!((config.memory.require, config.memory.arena_bytes), (Level::Locked, 2 << 20));
    assert_eq!(config.key, KeySpec { algorithm: KeyAlgorithm::P256, encoding: KeyEncoding::Pkcs8 });
}

#[test]
fn every_variable_has_an_effect() {
    let config = config(&[
        ("CA_ADDR", "[::1]:15012"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("ISTIOD_SAN", "10.0.0.1"),
        ("PROV_CERT", "/etc/prov"),
        ("TRUST_DOMAIN", "td"),
        ("ISTIO_META_CLUSTER_ID", "west"),
        ("ISTIO_META_CERT_SIGNER", "signer"),
        ("CA_HEADER_X-Tenant_1", "blue"),
        ("SECRET_TTL", "1h"),
        ("SECRET_GRACE_PERIOD_RATIO", "0.25"),
        ("ECC_SIGNATURE_ALGORITHM", "ECDSA"),
        ("ECC_CURVE", "P384"),
        ("WORKLOAD_RSA_KEY_SIZE", "2048"),
        ("PKCS8_KEY", "false"),
        ("WORKLOAD_IDENTITY_SOCKET_FILE", "s"),
        ("SDS_SHIM_TOKEN_AUDIENCE", "a"),
        ("SDS_SHIM_CA_MTLS", "always"),
        ("SDS_SHIM_CA_TIMEOUT", "3s"),
        ("SDS_SHIM_ALLOW_UIDS", "1337, 2"),
        ("SDS_SHIM_REQUIRE_LOCKED", "secret"),
        ("SDS_SHIM_ARENA_KIB", "4096"),
        ("SDS_SHIM_LOG", "debug"),
    ])
    .unwrap();
    assert_eq!((config.ca.host.as_str(), config.ca.roots), ("::1", CaRoots::System));
    assert_eq!(config.ca.server_name, ServerName::Ip("10.0.0.1".parse().unwrap()));
    assert_eq!(config.ca.provisioned, Some("/etc/prov".into()));
    assert_eq!((config.ca.cluster_id.as_str(), config.ca.ttl.as_secs()), ("west", 3600));
    assert_eq!((config.ca.mutual_tls, config.ca.timeout.as_secs()), (MutualTls::Always, 3));
    assert_eq!((config.memory.require, config.memory.arena_bytes), (Level::Secret, 4 << 20));
    assert_eq!(config.ca.cert_signer.as_deref(), Some("signer"));
    let headers: Vec<_> = config.ca.headers.iter().map(|header| (&*header.name, &*header.value)).collect();
    assert_eq!(headers, [("x-tenant_1", "blue")]);
    assert_eq!(format!("{:?}", config.ca.headers), "[CaHeader(x-tenant_1)]");
    assert_eq!(config.rotation.grace_period, Some(GracePeriod { ratio: 0.25, jitter: 0.1 }));
    assert_eq!(config.key, KeySpec { algorithm: KeyAlgorithm::P384, encoding: KeyEncoding::Traditional });
    assert_eq!(config.identity.spiffe_id.unwrap().as_str(), "spiffe://td/ns/foo/sa/sleep");
    assert_eq!(config.sds.socket, PathBuf::from("./var/run/secrets/workload-spiffe-uds/s"));
    assert_eq!(config.sds.allowed_uids, BTreeSet::from([2, 1337]));
    assert_eq!((config.token.audience.as_str(), config.log), ("a", LogLevel::Debug));
}

#[test]
fn values_depend_on_each_other_as_in_istio() {
    let rsa = config(&[("WORKLOAD_RSA_KEY_SIZE", "3072")]).unwrap();
    assert_eq!(rsa.key.algorithm, KeyAlgorithm::Rsa { bits: 3072 });
    let local = config(&[("CA_ADDR", "localhost:15012")]).unwrap();
    assert_eq!(local.ca.server_name, ServerName::Dns("istiod.istio-system.svc".to_owned()));
    assert!(!local.ca.plaintext && config(&[("CA_ADDR", "istiod:15010")]).unwrap().ca.plaintext);
    let provisioned = config(&[("PROV_CERT", "/p")]).unwrap();
    assert_eq!(provisioned.ca.roots, CaRoots::File("/p/root-cert.pem".into()));
    let request = config(&[("SDS_SHIM_TOKEN_SOURCE", "request"), ("POD_NAMESPACE", ""), ("SERVICE_ACCOUNT", "")]);
    let request = request.unwrap();
    assert!(request.token.file.is_none() && request.identity.spiffe_id.is_none());
}

#[test]
fn each_mistake_names_its_variable_and_never_its_value() {
    for (name, value) in [
        ("CA_ADDR", "no-port"),
        ("CA_ADDR", "https://ca:15012"),
        ("CA_ADDR", "ca:0"),
        ("CA_ADDR", "[::1:15012"),
        ("CA_ADDR", "a..b:15012"),
        ("ISTIOD_SAN", "not a name"),
        ("CA_HEADER_", "secret-value"),
        ("CA_HEADER_A B", "secret-value"),
        ("CA_HEADER_Authorization", "secret-value"),
        ("CA_HEADER_X", "secret\nvalue"),
        ("TRUST_DOMAIN", "Upper"),
        ("POD_NAMESPACE", "a/b"),
        ("POD_NAMESPACE", ""),
        ("SERVICE_ACCOUNT", "../x"),
        ("ISTIO_META_CLUSTER_ID", "caf\u{e9}"),
        ("SECRET_TTL", "1 day"),
        ("SECRET_TTL", "500ms"),
        ("SECRET_GRACE_PERIOD_RATIO", "1.5"),
        ("SECRET_GRACE_PERIOD_RATIO", "NaN"),
        ("SECRET_GRACE_PERIOD_RATIO_JITTER", "-0.1"),
        ("ECC_SIGNATURE_ALGORITHM", "ED25519"),
        ("ECC_CURVE", "P521"),
        ("WORKLOAD_RSA_KEY_SIZE", "1024"),
        ("PKCS8_KEY", "yes"),
        ("WORKLOAD_IDENTITY_SOCKET_FILE", "a/b"),
        ("SDS_SHIM_TOKEN_SOURCE", "env"),
        ("SDS_SHIM_CA_MTLS", "sometimes"),
        ("SDS_SHIM_CA_MTLS", "always"),
        ("SDS_SHIM_CA_TIMEOUT", "0"),
        ("SDS_SHIM_ALLOW_UIDS", "root"),
        ("SDS_SHIM_LOG", "verbose"),
        ("SDS_SHIM_REQUIRE_LOCKED", "yes"),
        ("SDS_SHIM_ARENA_KIB", "1024"),
        ("SDS_SHIM_TYPO", "secret-value"),
    ] {
        let mistakes = config(&[(name, value)]).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
        assert!(mistakes[0].starts_with(&format!("{name}: ")), "{mistakes:?}");
        assert!(value.len() < 7 || !mistakes[0].contains(value), "{mistakes:?}");
    }
}

#[test]
fn a_host_name_that_openssl_would_not_take_is_refused() {
    let long = format!("{}.example:15012", "x".repeat(64));
    assert!(config(&[("CA_ADDR", long.as_str())]).unwrap_err()[0].starts_with("CA_ADDR: "));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = config(&[("CA_ADDR", "x"), ("SECRET_TTL", "x"), ("SDS_SHIM_X", "x")]).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}
