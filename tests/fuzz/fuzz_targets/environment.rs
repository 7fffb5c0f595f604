//! The environment, a `NAME=value` a line, in which `\x01` stands for the end of a line within a value: what is taken can
//! be used, and what is refused is never repeated.
#![no_main]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use libfuzzer_sys::fuzz_target;
use sds_shim::{
    ca::CitadelClient,
    config::{CaConfig, Config, SOCKET_DIRECTORY},
    identity::KeyAlgorithm,
};

/// Somebody may have put a secret into the wrong variable.
const SECRET: &str = "hunter2-hunter2";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let whole: BTreeMap<_, _> = lines.map(|(name, value)| (name, value.replace('\x01', "\n"))).collect();
    let mut env: BTreeMap<&str, &str> = whole.iter().map(|(name, value)| (*name, &**value)).collect();
    if let Ok(config) = Config::from_env(&env) {
        can_be_used(config);
    }
    // Once more, each value with something in it that must not be told.
    let values: Vec<_> = env.iter().map(|(name, value)| (*name, format!("{value}{SECRET}"))).collect();
    env = values.iter().filter(|(name, _)| !name.contains(SECRET)).map(|(name, value)| (*name, &**value)).collect();
    if let Err(mistakes) = Config::from_env(&env) {
        assert!(!mistakes.is_empty());
        for mistake in mistakes {
            assert!(!mistake.to_string().contains(SECRET), "a value is told: {mistake}");
        }
    }
});

fn can_be_used(config: Config) {
    assert_eq!(config.sds.socket.parent(), Some(SOCKET_DIRECTORY.as_ref()));
    assert!(config.sds.socket.file_name().is_some(), "the socket has no name");
    if let Some(id) = &config.identity.spiffe_id {
        let parts: Vec<_> = id.as_str().split('/').collect();
        let domain = config.identity.trust_domain.to_string();
        let ["spiffe:", "", authority, "ns", namespace, "sa", account] = parts[..] else { panic!("{id}") };
        assert_eq!(authority, domain);
        for part in [authority, namespace, account] {
            assert!(!part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{id}");
        }
    }
    if let KeyAlgorithm::Rsa { bits } = config.key.algorithm {
        assert!((2048..=4096).contains(&bits));
    }
    if let Some(grace) = config.rotation.schedule.grace_period {
        assert!((0.0..=1.0).contains(&grace.ratio) && (0.0..=1.0).contains(&grace.jitter));
    }
    assert!((2 << 20..=256 << 20).contains(&config.memory.arena_bytes));
    ca_can_be_called(config.ca);
}

fn ca_can_be_called(ca: CaConfig) {
    let longest = Duration::from_nanos(i64::MAX as u64);
    assert!(!ca.addresses.is_empty());
    for address in &ca.addresses {
        assert!(address.port != 0 && !address.host.is_empty(), "{address:?}");
        assert!(!address.host.contains([' ', '/', '@', '%']), "{address:?}");
    }
    assert!((Duration::from_secs(1)..=longest).contains(&ca.ttl), "{:?}", ca.ttl);
    assert!((Duration::from_nanos(1)..=longest).contains(&ca.timeout), "{:?}", ca.timeout);
    for header in &ca.headers {
        assert!(http::HeaderName::from_bytes(header.name.as_bytes()).is_ok(), "{header:?}");
        assert!(http::HeaderValue::from_str(&header.value).is_ok(), "{header:?}");
        assert!(!["authorization", "clusterid", "grpc-timeout"].contains(&&*header.name));
    }
    assert!(http::HeaderValue::from_str(&ca.cluster_id).is_ok());
    tonic::Request::new(()).set_timeout(ca.timeout);
    let ca = Arc::new(ca);
    for address in &ca.addresses {
        let client = CitadelClient::new(Arc::clone(&ca), address.clone());
        assert!(client.is_ok(), "the CA's name cannot stand in a request");
    }
}
