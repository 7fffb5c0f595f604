mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use locked::Level;

use super::{ca::ROOT_FILE, token::TOKEN_FILE, *};
use crate::identity::KeyEncoding;

const CRL_FILE: &str = "./var/run/secrets/istio/crl/ca-crl.pem";

fn address(host: &str, port: u16) -> CaAddress {
    CaAddress { host: host.to_owned(), port, server_name: ServerName::Dns(host.to_owned()) }
}

fn config(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut env = BTreeMap::from([("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep")]);
    env.extend(variables.iter().copied());
    Config::from_env(&env).map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]).unwrap();
    assert_eq!(config.ca.addresses, [address("istiod.istio-system.svc", 15012)]);
    assert_eq!(config.ca.roots, CaRoots::File(ROOT_FILE.into()));
    assert_eq!(config.ca.ttl, Duration::from_secs(86_400));
    assert_eq!((config.ca.mutual_tls, config.ca.tls), (MutualTls::Auto, CaTls::default()));
    assert_eq!(config.ca.cluster_id, "Kubernetes");
    assert_eq!(config.identity.spiffe_id.unwrap().as_str(), "spiffe://cluster.local/ns/foo/sa/sleep");
    assert_eq!(config.sds.socket, PathBuf::from("./var/run/secrets/workload-spiffe-uds/socket"));
    assert_eq!(config.token.file, Some(TOKEN_FILE.into()));
    assert_eq!(config.rotation.schedule, Schedule::default());
    let roots = RootsConfig { files: vec![ROOT_FILE.into()], crl: Some(CRL_FILE.into()), ..RootsConfig::default() };
    assert_eq!(config.rotation.roots, roots);
    assert_eq!((config.memory.require, config.memory.arena_bytes), (Level::Locked, locked::ARENA_KIB << 10));
    assert_eq!(config.wait, WaitFor::Socket);
    assert_eq!(config.key, KeySpec { algorithm: KeyAlgorithm::P256, encoding: KeyEncoding::Pkcs8 });
}

#[test]
fn every_variable_has_an_effect() {
    let config = config(&[
        ("CA_ADDR", "[::1]:15012, b:443"),
        ("SDS_SHIM_EXTRA_ROOTS", "/a.pem, /b.pem,"),
        ("SDS_SHIM_BUNDLES", "one=/one.pem, two.example=/two.pem"),
        ("SDS_SHIM_CRL", "/crl.pem"),
        ("SDS_SHIM_CRL_FAIL_OPEN", "true"),
        ("SDS_SHIM_CRL_LEAF_ONLY", "true"),
        ("SDS_SHIM_ROOT_GRACE", "0s"),
        ("FILE_DEBOUNCE_DURATION", "1s"),
        ("OUTPUT_CERTS", "/out"),
        ("SDS_SHIM_OUTPUT_MODE", "0600"),
        ("SDS_SHIM_OUTPUT_GID", "7"),
        ("SDS_SHIM_FILE_CHECK", "0s"),
        ("SDS_SHIM_AVAILABILITY_TARGET", "24h"),
        ("PROXY_CONFIG", "{caCertificatesPem: [pem], discoveryAddress: 'unused:1'}"),
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
        ("SDS_SHIM_TRUST_DOMAIN_FILE", "/td"),
        ("SDS_SHIM_TOKEN_AUDIENCE", "a"),
        ("SSL_CERT_FILE", "/s.pem"),
        ("SDS_SHIM_CA_MTLS", "always"),
        ("SDS_SHIM_CA_TLS_MIN", "1.3"),
        ("SDS_SHIM_CA_TLS_GROUPS", "x25519,secp256r1"),
        ("SDS_SHIM_CA_TIMEOUT", "3s"),
        ("SDS_SHIM_CA_ANSWER_TIMEOUT", "2m"),
        ("SDS_SHIM_ALLOW_UIDS", "1337, 2"),
        ("SDS_SHIM_FILE_DIRECTORIES", "/a, /b/c/"),
        ("SDS_SHIM_WAIT", "certificate"),
        ("SDS_SHIM_ADMIN", "unix:./a"),
        ("SDS_SHIM_ADMIN_TLS", "[::]:15023"),
        ("SDS_SHIM_ADMIN_TLS_CLIENTS", "spiffe://td/ns/m/sa/p, spiffe://other/*"),
        ("SDS_SHIM_READY_MIN_LIFE", "1m"),
        ("SDS_SHIM_REQUIRE_LOCKED", "secret"),
        ("SDS_SHIM_ARENA_KIB", "4096"),
        ("SDS_SHIM_LOG", "sds=warn,debug"),
        ("SDS_SHIM_LOG_FORMAT", "json"),
    ])
    .unwrap();
    let named = ServerName::Ip("10.0.0.1".parse().unwrap());
    let first = CaAddress { host: "::1".to_owned(), port: 15012, server_name: named.clone() };
    let second = CaAddress { host: "b".to_owned(), port: 443, server_name: named };
    assert_eq!((config.ca.addresses, config.ca.roots), (vec![first, second], CaRoots::System(Some("/s.pem".into()))));
    assert_eq!(config.ca.provisioned, Some("/etc/prov".into()));
    assert_eq!((config.ca.cluster_id.as_str(), config.ca.ttl.as_secs()), ("west", 3600));
    assert_eq!((config.ca.mutual_tls, config.ca.timeout.as_secs()), (MutualTls::Always, 3));
    assert_eq!(config.ca.answer_timeout.as_secs(), 120);
    assert_eq!(config.ca.tls, CaTls { only_1_3: true, groups: Some("X25519:P-256".to_owned()) });
    assert_eq!((config.memory.require, config.memory.arena_bytes), (Level::Secret, 4 << 20));
    assert_eq!(config.ca.cert_signer.as_deref(), Some("signer"));
    let headers: Vec<_> = config.ca.headers.iter().map(|header| (&*header.name, &*header.value)).collect();
    assert_eq!(headers, [("x-tenant_1", "blue")]);
    assert_eq!(format!("{:?}", config.ca.headers), "[CaHeader(x-tenant_1)]");
    let schedule = config.rotation.schedule;
    assert_eq!(schedule.grace_period, Some(GracePeriod { ratio: 0.25, jitter: 0.1 }));
    assert_eq!(schedule.availability_target, Some(Duration::from_secs(86_400)));
    let files = vec!["/a.pem".into(), "/b.pem".into()];
    let roots = RootsConfig {
        files,
        crl: Some("/crl.pem".into()),
        crl_required: true,
        crl_fail_open: true,
        crl_leaf_only: true,
        trust_domain: "td".parse().unwrap(),
        moves: true,
        trust_domain_file: Some("/td".into()),
        domains: vec![("one".parse().unwrap(), "/one.pem".into()), ("two.example".parse().unwrap(), "/two.pem".into())],
        bundle_map: None,
        inline: vec!["pem".to_owned()],
        grace: Some(Duration::ZERO),
    };
    assert_eq!(config.rotation.roots, roots);
    assert_eq!(config.output, Some(OutputConfig { directory: "/out".into(), mode: 0o600, gid: Some(7) }));
    assert_eq!(config.files, FilesConfig { debounce: Duration::from_secs(1), check: FileCheck::Never });
    assert_eq!(config.key, KeySpec { algorithm: KeyAlgorithm::P384, encoding: KeyEncoding::Traditional });
    assert_eq!(config.identity.spiffe_id.unwrap().as_str(), "spiffe://td/ns/foo/sa/sleep");
    assert_eq!(config.sds.socket, PathBuf::from("./var/run/secrets/workload-spiffe-uds/s"));
    assert_eq!(config.sds.allowed_uids, BTreeSet::from([2, 1337]));
    assert_eq!(config.sds.file_directories, [PathBuf::from("/a"), PathBuf::from("/b/c/")]);
    assert_eq!((config.token.audience.as_deref(), config.log.level), (Some("a"), LogLevel::Debug));
    assert_eq!(config.wait, WaitFor::Certificate);
    assert_eq!((config.log.format, config.log.scopes), (LogFormat::Json, vec![("sds", LogLevel::Warn)]));
    let clients = ["spiffe://td/ns/m/sa/p", "spiffe://other/*"].map(|pattern| pattern.parse().unwrap());
    let tls = AdminTls { address: "[::]:15023".parse().unwrap(), clients: clients.to_vec() };
    assert_eq!(config.admin.tls, Some(tls));
    assert_eq!((config.admin.listen, config.admin.min_life.as_secs()), (Some(AdminAddress::Unix("./a".into())), 60));
}

#[test]
fn our_own_trust_domain_is_rejected_as_foreign_unless_it_may_change() {
    let bundles = ("SDS_SHIM_BUNDLES", "cluster.local=/own.pem,other=/other.pem");
    assert!(config(&[bundles]).unwrap_err()[0].to_string().contains("our own trust domain"));
    let movable = config(&[bundles, ("SDS_SHIM_TRUST_DOMAIN_FILE", "./td")]).unwrap();
    assert_eq!(movable.rotation.roots.domains.len(), 2);
    let map = config(&[("SDS_SHIM_BUNDLES", "@/map.json")]).unwrap().rotation.roots;
    assert!(map.domains.is_empty() && map.tells_apart() && map.bundle_map == Some("/map.json".into()));
    assert!(config(&[("SDS_SHIM_BUNDLES", "@")]).is_err());
}

#[test]
fn values_depend_on_each_other_as_in_istio() {
    let rsa = config(&[("WORKLOAD_RSA_KEY_SIZE", "3072")]).unwrap();
    assert_eq!(rsa.key.algorithm, KeyAlgorithm::Rsa { bits: 3072 });
    let local = config(&[("CA_ADDR", "localhost:15012")]).unwrap();
    let local = &local.ca.addresses[0];
    assert_eq!(local.server_name, ServerName::Dns("istiod.istio-system.svc".to_owned()));
    assert!(!local.is_plaintext() && config(&[("CA_ADDR", "istiod:15010")]).unwrap().ca.addresses[0].is_plaintext());
    let provisioned = config(&[("PROV_CERT", "/p")]).unwrap();
    assert_eq!(provisioned.ca.roots, CaRoots::File("/p/root-cert.pem".into()));
    let custom = config(&[("PROV_CERT", "/p"), ("PILOT_CERT_PROVIDER", "custom")]).unwrap();
    assert_eq!(custom.ca.roots, CaRoots::File("./etc/certs/root-cert.pem".into()));
    let kubernetes = config(&[("PILOT_CERT_PROVIDER", "kubernetes"), ("JWT_POLICY", "first-party-jwt")]).unwrap();
    let own = "./var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(kubernetes.ca.roots, CaRoots::File(ca::ROOT_FILE.into()));
    assert_eq!((kubernetes.token.file, kubernetes.token.audience), (Some(format!("{own}/token").into()), None));
    let discovered = config(&[("PROXY_CONFIG", r#"{"discoveryAddress": "istiod.example:15012"}"#)]).unwrap();
    assert_eq!(discovered.ca.addresses, [address("istiod.example", 15012)]);
    let request = config(&[("SDS_SHIM_TOKEN_SOURCE", "request"), ("POD_NAMESPACE", ""), ("SERVICE_ACCOUNT", "")]);
    let request = request.unwrap();
    assert!(request.token.file.is_none() && request.identity.spiffe_id.is_none());
    let early = config(&[("SDS_SHIM_TOKEN_SOURCE", "request"), ("SDS_SHIM_WAIT", "certificate")]);
    assert!(early.unwrap_err()[0].starts_with("SDS_SHIM_WAIT: "));
}

#[test]
fn what_istio_accepts_does_not_stop_the_start() {
    for provider in ["k8s.io/clusterissuers.cert-manager.io/istio-ca", "none", "whatever"] {
        let config = config(&[("PILOT_CERT_PROVIDER", provider), ("JWT_POLICY", "none")]).unwrap();
        assert_eq!(config.ca.roots, CaRoots::File(ca::ROOT_FILE.into()));
        assert_eq!(config.token.audience.as_deref(), Some("istio-ca"));
        assert!(config.notes.is_empty());
    }
    let google = config(&[("CREDENTIAL_FETCHER_TYPE", "GoogleComputeEngine")]).unwrap();
    assert_eq!(google.token.file, Some(TOKEN_FILE.into()));
    assert!(google.notes[0].starts_with("CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine: "));
    // What is unusable and unused.
    let both = [("PROXY_CONFIG", "{discoveryAddress: no-port}"), ("CA_ADDR", "a:1")];
    assert_eq!(config(&both).unwrap().ca.addresses, [address("a", 1)]);
}

#[test]
fn a_dot_at_the_end_of_a_host_is_for_the_resolver() {
    let named = |value: &str, san: &str| {
        let config = config(&[("CA_ADDR", value), ("ISTIOD_SAN", san)]).unwrap();
        let address = config.ca.addresses.into_iter().next().unwrap();
        (address.host, address.server_name)
    };
    let dns = |name: &str| ServerName::Dns(name.to_owned());
    assert_eq!(named("ca.example.:1", ""), ("ca.example.".to_owned(), dns("ca.example")));
    assert_eq!(named("localhost.:1", ""), ("localhost.".to_owned(), dns("istiod.istio-system.svc")));
    assert_eq!(named("a:1", "b.example."), ("a".to_owned(), dns("b.example")));
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_not_ours() {
    let link = [
        ("SDS_SHIM_SERVICE_HOST", "10.0.0.1"),
        ("SDS_SHIM_SERVICE_PORT", "80"),
        ("SDS_SHIM_SERVICE_PORT_HTTP", "80"),
        ("SDS_SHIM_PORT", "tcp://10.0.0.1:80"),
        ("SDS_SHIM_PORT_80_TCP_PROTO", "tcp"),
        ("SDS_SHIM_WEB_SERVICE_HOST", "10.0.0.2"),
        ("SDS_SHIM_WEB_PORT", "tcp://10.0.0.2:80"),
    ];
    assert!(config(&link).is_ok());
    // Without a Service nobody but a person has set it.
    assert!(config(&[("SDS_SHIM_PORT", "80")]).unwrap_err()[0].starts_with("SDS_SHIM_PORT: unknown variable"));
}

#[test]
fn our_own_output_is_not_a_source_of_anchors() {
    let written = [("PROV_CERT", "./certs"), ("OUTPUT_CERTS", "certs/")];
    let both = config(&written).unwrap();
    assert_eq!(both.ca.roots, CaRoots::File("./certs/root-cert.pem".into()));
    assert!(both.rotation.roots.files.is_empty());
    let read = config(&[("PROV_CERT", "./certs"), ("OUTPUT_CERTS", "/out")]).unwrap();
    assert_eq!(read.rotation.roots.files, [PathBuf::from("./certs/root-cert.pem")]);
}

#[test]
fn istio_compatible_defaults_give_way_to_what_is_set() {
    let istio = config(&[("SDS_SHIM_COMPAT", "istio")]).unwrap();
    let rsa = KeySpec { algorithm: KeyAlgorithm::Rsa { bits: 2048 }, encoding: KeyEncoding::Traditional };
    assert_eq!(istio.key, rsa);
    assert_eq!(istio.rotation.schedule.grace_period, Some(GracePeriod { ratio: 0.5, jitter: 0.01 }));
    let set = [("SDS_SHIM_COMPAT", "istio"), ("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("PKCS8_KEY", "true")];
    let set = config(&set).unwrap();
    assert_eq!(set.key, KeySpec { algorithm: KeyAlgorithm::P256, encoding: KeyEncoding::Pkcs8 });
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
        ("PROXY_CONFIG", "[no mapping]"),
        ("PROXY_CONFIG", "{discoveryAddress: no-port}"),
        ("CA_PROVIDER", "GoogleCAS"),
        ("SDS_SHIM_SOURCE", "both"),
        ("SDS_SHIM_BUNDLES", "/no-domain.pem"),
        ("SDS_SHIM_BUNDLES", "cluster.local=/own.pem"),
        ("SDS_SHIM_BUNDLES", "twice=/a.pem,twice=/b.pem"),
        ("SDS_SHIM_ADMIN_TLS", "localhost:15023"),
        ("SDS_SHIM_ADMIN_TLS", "unix:./a"),
        ("SDS_SHIM_ADMIN_TLS_CLIENTS", "grafana-agent"),
        ("SDS_SHIM_ADMIN_TLS_CLIENTS", "spiffe://td/a,*"),
        ("FILE_MOUNTED_CERTS", "maybe"),
        ("CREDENTIAL_FETCHER_TYPE", "Mock"),
        ("SDS_SHIM_COMPAT", "linkerd"),
        ("SDS_SHIM_OUTPUT_MODE", "rw"),
        ("SDS_SHIM_OUTPUT_GID", "wheel"),
        ("ECC_CURVE", "P521"),
        ("WORKLOAD_RSA_KEY_SIZE", "1024"),
        ("PKCS8_KEY", "yes"),
        ("WORKLOAD_IDENTITY_SOCKET_FILE", "a/b"),
        ("SDS_SHIM_TOKEN_SOURCE", "env"),
        ("SDS_SHIM_CA_MTLS", "sometimes"),
        ("SDS_SHIM_CA_MTLS", "always"),
        ("SDS_SHIM_CA_TIMEOUT", "0"),
        ("SDS_SHIM_CA_ANSWER_TIMEOUT", "0"),
        ("SDS_SHIM_ALLOW_UIDS", "root"),
        ("SDS_SHIM_LOG", "verbose"),
        ("SDS_SHIM_WAIT", "true"),
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
fn all_mistakes_are_reported_at_once() {
    let mistakes = config(&[("CA_ADDR", "x"), ("SECRET_TTL", "x"), ("SDS_SHIM_X", "x")]).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[test]
fn mounted_files_are_served() {
    let source = |variables: &[(&str, &str)]| {
        let config = config(variables).unwrap();
        let files = config.source.files.map(|files| [files.chain, files.key, files.roots]);
        (files, config.source.ca, config.rotation.roots.files)
    };
    let within = |directory: &str, names: [&str; 3]| names.map(|name| PathBuf::from(directory).join(name));
    let well_known = "./var/run/secrets/workload-spiffe-credentials";
    let names = ["cert-chain.pem", "key.pem", "root-cert.pem"];
    let ca_root = PathBuf::from(ROOT_FILE);
    assert_eq!(source(&[]), (None, true, vec![ca_root.clone()]));
    let mounted = within("./etc/certs", names);
    let only = |files: &[PathBuf; 3]| (Some(files.clone()), false, vec![files[2].clone()]);
    assert_eq!(source(&[("FILE_MOUNTED_CERTS", "true")]), only(&mounted));
    let gke = within(well_known, ["certificates.pem", "private_key.pem", "ca_certificates.pem"]);
    assert_eq!(source(&[("CA_PROVIDER", "GkeWorkloadCertificate")]), only(&gke));
    assert_eq!(source(&[("SDS_SHIM_SOURCE", "files")]), only(&within(well_known, names)));
    let both = (Some(mounted.clone()), true, vec![mounted[2].clone(), ca_root.clone()]);
    assert_eq!(source(&[("FILE_MOUNTED_CERTS", "true"), ("SDS_SHIM_SOURCE", "auto")]), both);
    assert_eq!(source(&[("FILE_MOUNTED_CERTS", "true"), ("SDS_SHIM_SOURCE", "ca")]), (None, true, vec![ca_root]));
    let bundle = [("SDS_SHIM_CREDENTIAL_BUNDLE", "/b.pem"), ("SDS_SHIM_TRUST_ANCHORS", "/ctb.pem")];
    assert_eq!(source(&bundle), only(&["/b.pem", "/b.pem", "/ctb.pem"].map(PathBuf::from)));
    assert!(config(&bundle[..1]).unwrap_err()[0].starts_with("SDS_SHIM_TRUST_ANCHORS: "));
    let unnamed = config(&[("SDS_SHIM_SOURCE", "files"), ("POD_NAMESPACE", ""), ("SERVICE_ACCOUNT", "")]);
    assert!(unnamed.unwrap().identity.spiffe_id.is_none());
    let request = config(&[("SDS_SHIM_TOKEN_SOURCE", "request"), ("SDS_SHIM_SOURCE", "auto")]);
    assert!(request.unwrap_err()[0].starts_with("SDS_SHIM_SOURCE: "));
}

#[test]
fn a_workload_api_is_a_source_of_its_own() {
    const SPIFFE: (&str, &str) = ("SDS_SHIM_SOURCE", "spiffe");
    let at = |address| ("SPIFFE_ENDPOINT_SOCKET", address);
    let unnamed = [SPIFFE, at("unix:///run/agent.sock"), ("POD_NAMESPACE", ""), ("SERVICE_ACCOUNT", "")];
    let source = config(&unnamed).unwrap().source;
    let socket = PathBuf::from("/run/agent.sock");
    let spiffe = WorkloadApiSource { socket, id: None };
    assert_eq!(source, SourceConfig { spiffe: Some(spiffe.clone()), files: None, ca: false });
    let named = [SPIFFE, at("unix:/run/agent.sock"), ("SDS_SHIM_SPIFFE_ID", "spiffe://td/a/b")];
    let id = config(&named).unwrap().source.spiffe.unwrap().id.unwrap();
    assert_eq!(id.as_str(), "spiffe://td/a/b");
    // What an application's container has is no source.
    assert_eq!(config(&[at("nonsense")]).unwrap().source.spiffe, None);
    let mistake = |variables: &[(&str, &str)]| config(variables).unwrap_err().join("; ");
    assert!(mistake(&[SPIFFE]).starts_with("SPIFFE_ENDPOINT_SOCKET: required with SDS_SHIM_SOURCE=spiffe"));
    for address in ["tcp://127.0.0.1:8081", "/run/agent.sock", "unix:agent.sock", "unix:/"] {
        assert!(mistake(&[SPIFFE, at(address)]).contains("expected unix: and an absolute path"), "{address}");
    }
    for (variable, value) in [
        ("SDS_SHIM_SPIFFE_ID", "spiffe://td"),
        ("SDS_SHIM_TOKEN_SOURCE", "request"),
        ("SDS_SHIM_WORKLOAD_API", "unix:/agent.sock"),
        ("SDS_SHIM_TRUST_DOMAIN_FILE", "/domain"),
    ] {
        let told = mistake(&[SPIFFE, at("unix:///agent.sock"), (variable, value)]);
        let named = if variable == "SDS_SHIM_TOKEN_SOURCE" { "SDS_SHIM_SOURCE" } else { variable };
        assert!(told.starts_with(&format!("{named}: ")), "{told}");
    }
}

#[test]
fn followed_files_are_listed_once_and_limited() {
    let names =
        |config: Config| config.followed_files().iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    assert_eq!(names(config(&[]).unwrap()), [TOKEN_FILE, ROOT_FILE, CRL_FILE]);
    let extra = format!("{ROOT_FILE},/a,/a");
    let some = [("SDS_SHIM_EXTRA_ROOTS", &*extra), ("SDS_SHIM_TRUST_DOMAIN_FILE", "/td"), ("SDS_SHIM_BUNDLES", "b=/b")];
    assert_eq!(names(config(&some).unwrap()), [TOKEN_FILE, ROOT_FILE, "/a", CRL_FILE, "/td", "/b"]);
    let mounted = "./var/run/secrets/workload-spiffe-credentials";
    let files = ["cert-chain.pem", "key.pem", "root-cert.pem"].map(|name| format!("{mounted}/{name}"));
    let expected: Vec<_> = files.iter().map(String::as_str).chain([CRL_FILE]).collect();
    assert_eq!(names(config(&[("SDS_SHIM_SOURCE", "files")]).unwrap()), expected);
    let many = (0..99).map(|number| format!("/{number}")).collect::<Vec<_>>().join(",");
    assert_eq!(names(config(&[("SDS_SHIM_EXTRA_ROOTS", &many)]).unwrap()).len(), 32);
}
