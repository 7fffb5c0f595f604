//! Every variable's effect, seen from outside: at the CA, in what is served, in the log.

use std::{fs, time::Duration};

use openssl::{nid::Nid, pkey::Id};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Call, ClientCertificates, Fault, Leaf, Pki, TokenRequest},
    fixture::{Pod, Site, names, secret, tokens},
    sds,
    shim::ShimBuilder,
};

/// A pod whose shim has `env` beside the usual variables.
async fn pod(site: Site, env: &[(&str, &str)]) -> Result<Pod, Failure> {
    let shim = env.iter().fold(site.shim(), |shim, (name, value)| shim.env(*name, *value));
    site.serve_with(shim).await
}

/// The one call that brings the first certificate.
async fn first_call(pod: &Pod) -> Result<Call, Failure> {
    pod.ask(&["default"]).await?;
    pod.site.ca.calls().into_iter().next().ok_or_else(|| pod.shim.failure("the CA was not called"))
}

fn uri_names(call: &Call) -> Result<Vec<String>, Failure> {
    call.uris().or_fail("read the CSR")
}

/// Seconds to the renewal that the log announces.
async fn renewal_in(pod: &Pod) -> Result<u64, Failure> {
    let line = pod.shim.wait_for_log("renewal_in_s=").await?;
    let (_, rest) = line.split_once("renewal_in_s=").unwrap_or_default();
    rest.split_whitespace().next().unwrap_or_default().parse().or_fail(format!("read {line}"))
}

#[tokio::test]
async fn the_defaults_are_asked_of_the_ca() -> testkit::Result {
    let site = Site::new().await?;
    let shim = site.shim().without("TRUST_DOMAIN").without("ISTIO_META_CLUSTER_ID").without("POD_NAME");
    let pod = site.serve_with(shim).await?;
    let call = first_call(&pod).await?;
    assert_eq!(uri_names(&call)?, ["spiffe://cluster.local/ns/foo/sa/sleep"]);
    assert_eq!(call.header("clusterid"), Some("Kubernetes"));
    assert_eq!(call.validity_duration, 24 * 3600);
    assert!(call.peer.is_none());
    let authorization = call.authorization.ok_or_else(|| pod.shim.failure("there was no token"))?;
    assert_eq!(authorization.scheme, "Bearer");
    assert_eq!(authorization.subject.as_deref(), Some("system:serviceaccount:foo:sleep"));
    Ok(())
}

#[tokio::test]
async fn identity_cluster_and_lifetime_reach_the_ca() -> testkit::Result {
    let options = CaOptions { trust_domain: "example.org".to_owned(), ..CaOptions::default() };
    let mut site = Site::without_token(options).await?;
    let token = tokens().mint(&TokenRequest::new("bar", "httpbin"));
    site.workload.write_token(&token).or_fail("write the token")?;
    let env = [
        ("TRUST_DOMAIN", "example.org"),
        ("POD_NAMESPACE", "bar"),
        ("SERVICE_ACCOUNT", "httpbin"),
        ("ISTIO_META_CLUSTER_ID", "west 1"),
        ("SECRET_TTL", "1h30m0.5s"),
    ];
    let pod = pod(site, &env).await?;
    let call = first_call(&pod).await?;
    assert_eq!(uri_names(&call)?, ["spiffe://example.org/ns/bar/sa/httpbin"]);
    assert_eq!(call.header("clusterid"), Some("west 1"));
    assert_eq!(call.validity_duration, 5400, "whole seconds");
    let (_, answer) = pod.ask(&["default"]).await?;
    assert_eq!(secret(&answer, "default")?.spiffe_ids()?, ["spiffe://example.org/ns/bar/sa/httpbin"]);
    Ok(())
}

#[tokio::test]
async fn an_empty_value_counts_as_unset() -> testkit::Result {
    let empty = ["TRUST_DOMAIN", "SECRET_TTL", "ISTIO_META_CLUSTER_ID", "ECC_CURVE", "CA_ROOT_CA", "ISTIOD_SAN"];
    let more = ["PKCS8_KEY", "WORKLOAD_RSA_KEY_SIZE", "WORKLOAD_IDENTITY_SOCKET_FILE", "PROV_CERT", "SDS_SHIM_LOG"];
    let env: Vec<_> = empty.iter().chain(&more).map(|name| (*name, "")).collect();
    let call = first_call(&pod(Site::new().await?, &env).await?).await?;
    assert_eq!(uri_names(&call)?, ["spiffe://cluster.local/ns/foo/sa/sleep"]);
    assert_eq!((call.header("clusterid"), call.validity_duration), (Some("Kubernetes"), 86_400));
    Ok(())
}

#[tokio::test]
async fn the_whole_environment_of_an_istio_proxy_is_accepted() -> testkit::Result {
    let env = [
        ("JWT_POLICY", "third-party-jwt"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("CREDENTIAL_FETCHER_TYPE", "JWT"),
        ("CA_PROVIDER", "Citadel"),
        ("FILE_MOUNTED_CERTS", "false"),
        ("FILE_DEBOUNCE_DURATION", "100ms"),
        ("INSTANCE_IP", "10.0.0.7"),
        ("ISTIO_META_WORKLOAD_NAME", "sleep"),
        ("ISTIO_META_APP_CONTAINERS", "sleep"),
        ("ISTIO_CPU_LIMIT", "2"),
        ("GOMEMLIMIT", "1073741824"),
        ("PATH", "/usr/bin:/bin"),
    ];
    let pod = pod(Site::new().await?, &env).await?;
    assert_eq!(names(&pod.ask(&["default", "ROOTCA"]).await?.1)?, ["ROOTCA", "default"]);
    Ok(())
}

#[tokio::test]
async fn keys_are_of_the_kind_that_is_asked_for() -> testkit::Result {
    let p384 = [("ECC_CURVE", "P384")];
    let rsa = [("WORKLOAD_RSA_KEY_SIZE", "2048")];
    let rsa_3072 = [("WORKLOAD_RSA_KEY_SIZE", "3072"), ("PKCS8_KEY", "false")];
    let both = [("WORKLOAD_RSA_KEY_SIZE", "2048"), ("ECC_SIGNATURE_ALGORITHM", "ECDSA")];
    for (env, algorithm, bits, label) in [
        (&[][..], Id::EC, 256, "PRIVATE KEY"),
        (&[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P256")], Id::EC, 256, "PRIVATE KEY"),
        (&p384, Id::EC, 384, "PRIVATE KEY"),
        (&[("PKCS8_KEY", "false")], Id::EC, 256, "EC PRIVATE KEY"),
        (&[("PKCS8_KEY", "true")], Id::EC, 256, "PRIVATE KEY"),
        (&rsa, Id::RSA, 2048, "PRIVATE KEY"),
        (&rsa_3072, Id::RSA, 3072, "RSA PRIVATE KEY"),
        (&both, Id::EC, 256, "PRIVATE KEY"),
    ] {
        let pod = pod(Site::new().await?, env).await?;
        let workload = secret(&pod.ask(&["default"]).await?.1, "default")?;
        let key = workload.key()?;
        assert_eq!((key.id(), key.bits()), (algorithm, bits), "{env:?}");
        assert!(workload.key_fits_leaf()?);
        assert!(workload.key_pem.starts_with(&format!("-----BEGIN {label}-----\n")), "{env:?}");
        if let Ok(ec) = key.ec_key() {
            let curve = if bits == 256 { Nid::X9_62_PRIME256V1 } else { Nid::SECP384R1 };
            assert_eq!(ec.group().curve_name(), Some(curve));
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_renewal_follows_the_ratio_and_its_jitter_on_what_was_issued() -> testkit::Result {
    let day: u64 = 86_400;
    for (env, expected) in [
        (&[][..], day * 45 / 100..=day * 65 / 100),
        (
            &[("SECRET_GRACE_PERIOD_RATIO", "0.25"), ("SECRET_GRACE_PERIOD_RATIO_JITTER", "0")],
            day * 3 / 4..=day * 3 / 4,
        ),
        (&[("SECRET_GRACE_PERIOD_RATIO", "0.9")], 0..=day / 5),
        (&[("SECRET_GRACE_PERIOD_RATIO_JITTER", "0.2")], day * 3 / 10..=day * 7 / 10),
        // What was issued counts: the CA gives a day whatever more is asked.
        (&[("SECRET_TTL", "8760h"), ("SECRET_GRACE_PERIOD_RATIO_JITTER", "0")], day / 2..=day / 2),
    ] {
        let renewal = renewal_in(&pod(Site::new().await?, env).await?).await?;
        // The certificate is some seconds old when it arrives on a slow machine.
        assert!((expected.start().saturating_sub(30)..=*expected.end()).contains(&renewal), "{env:?}: {renewal} s");
    }
    Ok(())
}

#[tokio::test]
async fn a_short_lifetime_makes_renewals_come_by_themselves() -> testkit::Result {
    let env = [("SECRET_TTL", "4s"), ("SECRET_GRACE_PERIOD_RATIO", "0.5")];
    let pod = pod(Site::new().await?, &env).await?;
    let (mut stream, first) = pod.ask(&["default"]).await?;
    let second = stream.recv().await?;
    assert_ne!(first.version_info, second.version_info);
    assert_eq!(pod.site.ca.calls()[0].validity_duration, 4);
    Ok(())
}

#[tokio::test]
async fn the_ca_root_can_be_another_file() -> testkit::Result {
    let site = Site::new().await?;
    fs::remove_file(site.workload.root_certificate()).or_fail("remove the usual root")?;
    fs::write(site.workload.path().join("another.pem"), site.ca.root_pem()).or_fail("write the root")?;
    let pod = pod(site, &[("CA_ROOT_CA", "./another.pem")]).await?;
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn the_systems_roots_do_not_know_the_development_ca() -> testkit::Result {
    let pod = pod(Site::new().await?, &[("CA_ROOT_CA", "SYSTEM")]).await?;
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    assert!(pod.site.ca.calls().is_empty(), "the token is not sent to a server that is not verified");
    Ok(())
}

#[tokio::test]
async fn the_name_of_the_ca_is_that_of_istiod_for_localhost_and_can_be_set() -> testkit::Result {
    let named = |name: &str| CaOptions { server_names: vec![name.to_owned()], ..CaOptions::default() };
    let usual = Site::with(named("istiod.istio-system.svc")).await?.serve().await?;
    assert_eq!(names(&usual.ask(&["default"]).await?.1)?, ["default"]);
    let other = pod(Site::with(named("ca.example.org")).await?, &[("ISTIOD_SAN", "ca.example.org")]).await?;
    assert_eq!(names(&other.ask(&["default"]).await?.1)?, ["default"]);
    let wrong = Site::with(named("ca.example.org")).await?.serve().await?;
    wrong.shim.wait_for_log("cannot obtain a certificate").await?;
    assert!(wrong.site.ca.calls().is_empty(), "the token is not sent to a server with another name");
    Ok(())
}

/// A site whose CA wants a client certificate, one in `./provisioned`, and a shim that is told of it.
async fn provisioned(mode: ClientCertificates) -> Result<(Site, ShimBuilder), Failure> {
    let options = CaOptions { client_certificates: mode, ..CaOptions::default() };
    let site = Site::with(options).await?;
    let issued = site.pki.issue(&Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600)));
    let directory = site.workload.path().join("provisioned");
    fs::create_dir(&directory).or_fail("make the directory")?;
    let files =
        [("key.pem", issued.key_pem), ("cert-chain.pem", issued.chain_pem), ("root-cert.pem", site.ca.root_pem())];
    for (name, content) in files {
        fs::write(directory.join(name), content).or_fail("write the provisioned certificate")?;
    }
    fs::remove_file(site.workload.root_certificate()).or_fail("remove the usual root")?;
    let shim = site.shim().env("PROV_CERT", "./provisioned");
    Ok((site, shim))
}

#[tokio::test]
async fn a_provisioned_certificate_is_presented_from_the_first_call_on_and_its_root_is_used() -> testkit::Result {
    for mode in ["auto", "always"] {
        let (site, shim) = provisioned(ClientCertificates::Require).await?;
        let pod = site.serve_with(shim.env("SDS_SHIM_CA_MTLS", mode)).await?;
        let peer = first_call(&pod).await?.peer.ok_or_else(|| pod.shim.failure("there was no client certificate"))?;
        assert_eq!(peer.spiffe_id, Some(pod.site.workload.spiffe_id()));
    }
    Ok(())
}

#[tokio::test]
async fn client_certificates_can_be_switched_off() -> testkit::Result {
    let (site, shim) = provisioned(ClientCertificates::Accept).await?;
    let pod = site.serve_with(shim.env("SDS_SHIM_CA_MTLS", "never")).await?;
    pod.rotate_and_see().await?;
    assert!(pod.site.ca.calls().iter().all(|call| call.peer.is_none()));
    Ok(())
}

#[tokio::test]
async fn our_own_certificate_is_presented_from_the_second_call_on() -> testkit::Result {
    let pod = Pod::new().await?;
    pod.rotate_and_see().await?;
    let calls = pod.site.ca.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls[0].peer.is_none() && calls[1].authorization.is_some());
    let peer = calls[1].peer.clone().ok_or_else(|| pod.shim.failure("there was no client certificate"))?;
    assert_eq!(peer.spiffe_id, Some(pod.site.workload.spiffe_id()));
    Ok(())
}

#[tokio::test]
async fn the_deadline_of_an_answer_can_be_set() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.push_fault(Fault::Hang);
    let pod = pod(site, &[("SDS_SHIM_CA_ANSWER_TIMEOUT", "1s")]).await?;
    // Given up, and asked again.
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    assert!(pod.site.ca.calls().len() > 1);
    Ok(())
}

#[tokio::test]
async fn the_audience_of_the_token_can_be_set() -> testkit::Result {
    let options = || CaOptions { audience: "another".to_owned(), ..CaOptions::default() };
    let request = TokenRequest { audiences: vec!["another".to_owned()], ..TokenRequest::new("foo", "sleep") };
    let mut site = Site::without_token(options()).await?;
    site.workload.write_token(&tokens().mint(&request)).or_fail("write the token")?;
    let pod = pod(site, &[("SDS_SHIM_TOKEN_AUDIENCE", "another")]).await?;
    assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
    let mut site = Site::without_token(options()).await?;
    site.workload.write_token(&tokens().mint(&request)).or_fail("write the token")?;
    let usual = site.serve().await?;
    usual.shim.wait_for_log("cannot obtain a certificate").await?;
    assert!(usual.site.ca.calls().is_empty(), "a token for somebody else is not sent");
    Ok(())
}

#[tokio::test]
async fn the_token_can_come_with_each_request_and_then_no_identity_is_needed() -> testkit::Result {
    let site = Site::without_token(CaOptions::default()).await?;
    let shim = site.shim().without("POD_NAMESPACE").without("SERVICE_ACCOUNT");
    let pod = site.serve_with(shim.env("SDS_SHIM_TOKEN_SOURCE", "request")).await?;
    let refused = pod.client.fetch(sds::request(&["default"])).await.err().map(|status| status.code());
    assert_eq!(refused, Some(tonic::Code::Unauthenticated));
    let mut stream = pod.client.clone().with_token(&pod.site.token())?.stream();
    stream.send(sds::request(&["default"]));
    let workload = secret(&stream.recv().await?, "default")?;
    assert_eq!(workload.spiffe_ids()?, [pod.site.workload.spiffe_id()]);
    Ok(())
}

#[tokio::test]
async fn the_log_has_the_level_that_is_asked_for() -> testkit::Result {
    let levels = ["error", "warn", "info", "debug"];
    for (position, level) in levels.iter().enumerate() {
        let mut pod = pod(Site::without_token(CaOptions::default()).await?, &[("SDS_SHIM_LOG", *level)]).await?;
        pod.shim.wait_for_log("cannot obtain a certificate").await?;
        pod.site.refresh_token()?;
        let (mut stream, answer) = pod.ask(&["default", "nobody"]).await?;
        stream.send(sds::ack(&answer, &["default", "ROOTCA", "nobody"]));
        stream.recv().await?;
        pod.shim.terminate().await?;
        for (severity, name) in levels.iter().enumerate() {
            let shown = pod.shim.log().contains(&format!(" {} ", name.to_uppercase()));
            assert_eq!(shown, severity <= position, "{name} at {level}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn neither_tokens_nor_keys_are_ever_in_the_log() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.push_fault(Fault::Status(tonic::Code::Unauthenticated, "no".to_owned()));
    let mut pod = pod(site, &[("SDS_SHIM_LOG", "debug")]).await?;
    let token = fs::read_to_string(pod.site.workload.token_file()).or_fail("read the token")?;
    let (_, answer) = pod.ask(&["default"]).await?;
    pod.rotate_and_see().await?;
    pod.shim.terminate().await?;
    let key = secret(&answer, "default")?.key_pem;
    let secrets = token.split('.').chain(key.lines().filter(|line| !line.starts_with('-')));
    for part in secrets.filter(|part| part.len() > 8) {
        assert!(!pod.shim.log().contains(part));
    }
    Ok(())
}

#[tokio::test]
async fn a_ca_under_another_root_is_not_trusted() -> testkit::Result {
    let site = Site::new().await?;
    site.workload.write_root(&Pki::new("another").root_pem()).or_fail("write the root")?;
    let pod = site.serve().await?;
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    assert!(pod.site.ca.calls().is_empty());
    Ok(())
}
