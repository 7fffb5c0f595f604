//! TLS towards the CA: which servers are trusted, and what is wrong with those that are not.

use std::{fs, net::Ipv4Addr, sync::Arc};

use serde_json::Value;
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Fault, Leaf, Pki, TlsVersions},
    fixture::{Open, Site, within},
    shim::{Shim, ShimBuilder},
};

fn server(leaf: Leaf) -> CaOptions {
    CaOptions { server_leaf: Some(leaf), ..CaOptions::default() }
}

async fn works(scene: &Site, shim: ShimBuilder) -> testkit::Result {
    let mut shim = shim.start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(scene.issued(), [secret.serial()?]);
    Ok(())
}

/// The server is not trusted for `reason`: that is told once over several tries, and no call is made.
async fn refused(scene: &Site, shim: ShimBuilder, reason: &str) -> testkit::Result {
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log(reason).await?;
    assert!(line.contains("TLS handshake with "), "{line}");
    within(&shim, "two more tries", scene.ca.wait_for_connections(3)).await?;
    stream.expect_silence(&shim).await?;
    assert_eq!(shim.log().count(reason), 1);
    assert_eq!(scene.ca.calls().len(), 0, "nothing is sent to a server that is not trusted");
    Ok(())
}

#[tokio::test]
async fn tls_1_2_and_1_3_alone_are_spoken() -> testkit::Result {
    for tls in [TlsVersions::Only12, TlsVersions::Only13] {
        let scene = Site::with_tls(tls).await?;
        works(&scene, scene.shim()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_certificate_for_another_name_is_refused() -> testkit::Result {
    let scene = Site::with(server(Leaf::server(&["istiod.example"]))).await?;
    refused(&scene, scene.shim(), "hostname mismatch").await
}

/// A workload that is issued a certificate with the CA's name as its common name must not get anybody's token (RFC 9525,
/// section 2).
#[tokio::test]
async fn a_common_name_does_not_name_a_server() -> testkit::Result {
    for leaf in [
        Leaf { uri: vec!["spiffe://cluster.local/ns/foo/sa/mallory".to_owned()], ..Leaf::server(&[]) },
        Leaf::server(&[]),
    ] {
        let leaf = Leaf { common_name: Some("istiod.istio-system.svc".to_owned()), ..leaf };
        let scene = Site::with(server(leaf)).await?;
        refused(&scene, scene.shim(), "hostname mismatch").await?;
    }
    Ok(())
}

/// The intermediate alone as the CA's trust anchor, as istio-csr's users have it.
#[tokio::test]
async fn an_intermediate_can_be_the_anchor() -> testkit::Result {
    let scene = Site::new().await?;
    let anchor = scene.workload.path().join("intermediate.pem");
    fs::write(&anchor, scene.pki.intermediate_pem()).or_fail("write the anchor")?;
    works(&scene, scene.shim().env("CA_ROOT_CA", anchor.display().to_string())).await
}

#[tokio::test]
async fn localhost_in_the_certificate_does_not_help() -> testkit::Result {
    // The name behind `localhost` is istiod's own, whatever the server calls itself.
    let scene = Site::with(server(Leaf::server(&["localhost"]))).await?;
    refused(&scene, scene.shim(), "hostname mismatch").await
}

#[tokio::test]
async fn istiod_san_names_the_server() -> testkit::Result {
    let scene = Site::with(server(Leaf::server(&["istiod.example"]))).await?;
    works(&scene, scene.shim().env("ISTIOD_SAN", "istiod.example")).await
}

#[tokio::test]
async fn istiod_san_is_the_only_name_then() -> testkit::Result {
    let scene = Site::new().await?;
    refused(&scene, scene.shim().env("ISTIOD_SAN", "istiod.example"), "hostname mismatch").await
}

#[tokio::test]
async fn an_address_is_verified_as_an_address() -> testkit::Result {
    let leaf = Leaf { ip: vec![Ipv4Addr::LOCALHOST.into()], ..Leaf::server(&[]) };
    let scene = Site::with(server(leaf)).await?;
    works(&scene, scene.shim().env("CA_ADDR", scene.ca.address().to_string())).await
}

#[tokio::test]
async fn another_address_is_refused() -> testkit::Result {
    let leaf = Leaf { ip: vec![Ipv4Addr::new(192, 0, 2, 1).into()], ..Leaf::server(&["istiod.istio-system.svc"]) };
    let scene = Site::with(server(leaf)).await?;
    refused(&scene, scene.shim().env("CA_ADDR", scene.ca.address().to_string()), "IP address mismatch").await
}

#[tokio::test]
async fn an_address_can_be_verified_by_istiod_san() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().env("CA_ADDR", scene.ca.address().to_string());
    works(&scene, shim.env("ISTIOD_SAN", "istiod.istio-system.svc")).await
}

#[tokio::test]
async fn an_expired_server_certificate_is_refused() -> testkit::Result {
    let leaf = Leaf { not_before: -7200, not_after: -3600, ..Leaf::server(&["istiod.istio-system.svc"]) };
    let scene = Site::with(server(leaf)).await?;
    refused(&scene, scene.shim(), "certificate has expired").await
}

#[tokio::test]
async fn a_server_certificate_from_the_future_is_refused() -> testkit::Result {
    let leaf = Leaf { not_before: 3600, not_after: 7200, ..Leaf::server(&["istiod.istio-system.svc"]) };
    let scene = Site::with(server(leaf)).await?;
    refused(&scene, scene.shim(), "certificate is not yet valid").await
}

#[tokio::test]
async fn a_client_certificate_is_rejected_as_a_servers() -> testkit::Result {
    let leaf = Leaf { server_auth: false, client_auth: true, ..Leaf::server(&["istiod.istio-system.svc"]) };
    let scene = Site::with(server(leaf)).await?;
    refused(&scene, scene.shim(), "unsuitable certificate purpose").await
}

#[tokio::test]
async fn a_server_without_tls_is_named() -> testkit::Result {
    let scene = Site::with(CaOptions { plaintext: true, ..CaOptions::default() }).await?;
    let shim = scene.shim().start()?;
    let line = shim.wait_for_log("TLS handshake with localhost:").await?;
    // In words, not by OpenSSL's number.
    assert!(line.contains("wrong version number"), "{line}");
    assert_eq!(scene.ca.calls().len(), 0, "the token does not go over a connection without TLS");
    Ok(())
}

#[tokio::test]
async fn an_unknown_root_is_refused_until_the_right_one_is_there() -> testkit::Result {
    let other = Arc::new(Pki::new("other"));
    let scene = Site::with(CaOptions { server_pki: Some(other), ..CaOptions::default() }).await?;
    scene.write_root(&scene.pki.root_pem())?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("unable to get local issuer certificate").await?;
    assert_eq!(scene.ca.calls().len(), 0);
    scene.write_root(&scene.ca.root_pem())?;
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn the_roots_of_the_system_can_be_asked_for() -> testkit::Result {
    let scene = Site::new().await?;
    // No system knows the root of a test.
    refused(&scene, scene.shim().env("CA_ROOT_CA", "SYSTEM"), "unable to get local issuer certificate").await
}

#[tokio::test]
async fn the_root_can_be_one_of_several_in_another_file() -> testkit::Result {
    let scene = Site::new().await?;
    let bundle = Pki::new("first").root_pem() + &scene.ca.root_pem() + &Pki::new("last").root_pem();
    testkit::fixture::write(&scene.workload.path().join("roots.pem"), &bundle)?;
    scene.write_root("")?;
    works(&scene, scene.shim().env("CA_ROOT_CA", "roots.pem")).await
}

/// With this content of the root file (no file when `None`) the CA is not even connected to; a good file that takes
/// its place while we run is enough.
async fn root_is_named_and_then_repaired(content: Option<&str>, reason: &str) -> testkit::Result {
    let scene = Site::new().await?;
    match content {
        Some(content) => scene.write_root(content)?,
        None => fs::remove_file(scene.workload.root_certificate()).or_fail("remove the root")?,
    }
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log("trust anchors for the CA, ./var/run/secrets/istio/root-cert.pem").await?;
    assert!(line.contains(reason), "{line}");
    stream.expect_silence(&shim).await?;
    assert_eq!(scene.ca.connections(), 0);
    scene.write_root(&scene.ca.root_pem())?;
    stream.next(&shim).await?;
    assert_eq!(shim.log().count("trust anchors for the CA"), 1);
    Ok(())
}

#[tokio::test]
async fn a_missing_root_is_named_and_repaired_while_running() -> testkit::Result {
    root_is_named_and_then_repaired(None, "No such file or directory").await
}

#[tokio::test]
async fn an_empty_root_is_named_and_repaired_while_running() -> testkit::Result {
    root_is_named_and_then_repaired(Some(""), "it holds no PEM certificate").await
}

#[tokio::test]
async fn garbage_for_a_root_is_named_and_repaired_while_running() -> testkit::Result {
    root_is_named_and_then_repaired(Some("\u{0}garbage\n"), "it holds no PEM certificate").await
}

#[tokio::test]
async fn a_broken_root_is_named_and_repaired_while_running() -> testkit::Result {
    let broken = "-----BEGIN CERTIFICATE-----\nTm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    root_is_named_and_then_repaired(Some(broken), "certificate 1 in it cannot be parsed").await
}

#[tokio::test]
async fn a_root_file_that_is_far_too_large_is_named() -> testkit::Result {
    let huge = "x".repeat(9 << 20);
    root_is_named_and_then_repaired(Some(&huge), "the file holds more than").await
}

#[tokio::test]
async fn the_operating_systems_anchors_are_used() -> testkit::Result {
    let system = fs::read("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    for before in [Vec::new(), system] {
        let scene = Site::new().await?;
        // The workload's own file plays no part.
        scene.write_root("")?;
        let file = scene.workload.path().join("system.pem");
        fs::write(&file, [before, scene.ca.root_pem().into_bytes()].concat()).or_fail("write the anchors")?;
        let shim = scene.shim().env("CA_ROOT_CA", "SYSTEM").env("SSL_CERT_FILE", file.display().to_string());
        works(&scene, shim).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_dot_at_the_end_of_a_name_is_not_part_of_it() -> testkit::Result {
    let scene = Site::with(server(Leaf::server(&["istiod.example"]))).await?;
    works(&scene, scene.shim().env("ISTIOD_SAN", "istiod.example.")).await
}

/// What `status` and the metrics tell of the last connection.
async fn spoken(shim: &mut Shim) -> Result<(String, String), Failure> {
    let status: Value = serde_json::from_str(&shim.admin("/status").await?.text()).or_fail("read the status")?;
    let ca = &status["ca"][0];
    let (version, group) = (ca["tls_version"].as_str().unwrap_or("none"), ca["tls_group"].as_str().unwrap_or("none"));
    let (address, metrics) = (&status["ca"][0]["address"], shim.admin("/metrics").await?.text());
    let sample = format!("sds_shim_ca_tls_info{{ca={address},version=\"{version}\",group=\"{group}\"}} 1");
    assert!(metrics.contains(&sample), "{sample} in {metrics}");
    Ok((version.to_owned(), group.to_owned()))
}

/// With these variables the server's `tls` and `groups` come to this version and group.
async fn comes_to(
    env: &[(&str, &str)],
    tls: TlsVersions,
    groups: Option<&str>,
    expected: (&str, &str),
) -> testkit::Result {
    let groups = groups.map(str::to_owned);
    let scene = Site::with(CaOptions { tls, groups, ..CaOptions::default() }).await?;
    let mut shim = env.iter().fold(scene.shim(), |shim, (name, value)| shim.env(*name, *value)).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let (version, group) = spoken(&mut shim).await?;
    assert_eq!((&*version, &*group), expected, "{env:?}");
    Ok(())
}

#[tokio::test]
async fn version_and_group_of_the_last_connection_are_shown() -> testkit::Result {
    let groups = "SDS_SHIM_CA_TLS_GROUPS";
    let alone = [("SDS_SHIM_CA_TLS_MIN", "1.3"), (groups, "X25519MLKEM768")];
    let hybrid = ("TLSv1.3", "X25519MLKEM768");
    comes_to(&[], TlsVersions::Both, None, hybrid).await?;
    comes_to(&alone, TlsVersions::Both, None, hybrid).await?;
    comes_to(&[], TlsVersions::Both, Some("X25519:P-256"), ("TLSv1.3", "X25519")).await?;
    // Not the first one of ours, for which there is a key share.
    comes_to(&[(groups, "X25519MLKEM768, secp384r1")], TlsVersions::Both, Some("P-384"), ("TLSv1.3", "P-384")).await?;
    // TLS 1.2 also wants the curve of the server's certificate among them.
    comes_to(&[(groups, "P521,P256")], TlsVersions::Only12, None, ("TLSv1.2", "P-521")).await
}

/// The server has none of the TLS that these variables want: that is told for `reason`, and no call is made.
async fn has_nothing_in_common(env: &[(&str, &str)], options: CaOptions, reason: &str) -> testkit::Result {
    let scene = Site::with(options).await?;
    let shim = env.iter().fold(scene.shim(), |shim, (name, value)| shim.env(*name, *value));
    refused(&scene, shim, reason).await
}

#[tokio::test]
async fn a_server_without_tls_1_3_is_refused_where_that_is_the_least() -> testkit::Result {
    let old = CaOptions { tls: TlsVersions::Only12, ..CaOptions::default() };
    let reason = "the server does not support TLS 1.3 (SDS_SHIM_CA_TLS_MIN)";
    has_nothing_in_common(&[("SDS_SHIM_CA_TLS_MIN", "1.3")], old, reason).await
}

#[tokio::test]
async fn a_server_without_our_groups_is_refused() -> testkit::Result {
    let post_quantum = [("SDS_SHIM_CA_TLS_GROUPS", "X25519MLKEM768")];
    let reason = "no group in common (SDS_SHIM_CA_TLS_GROUPS=X25519MLKEM768)";
    for tls in [TlsVersions::Both, TlsVersions::Only12] {
        let options = CaOptions { tls, groups: Some("X25519:P-256:P-384".to_owned()), ..CaOptions::default() };
        has_nothing_in_common(&post_quantum, options, reason).await?;
    }
    Ok(())
}

/// What is held stays in place, and a certificate that we present is not blamed.
#[tokio::test]
async fn a_ca_that_moves_to_an_older_tls_is_named_beside_what_is_served() -> testkit::Result {
    let (hybrid, old) = (Site::new().await?, TlsVersions::Only12);
    let second = Site::with_pki(Arc::clone(&hybrid.pki), CaOptions { tls: old, ..CaOptions::default() }).await?;
    let addresses = format!("localhost:{},localhost:{}", hybrid.ca.address().port(), second.ca.address().port());
    let shim = hybrid.shim().env("CA_ADDR", addresses).env("SDS_SHIM_CA_TLS_MIN", "1.3");
    let mut shim = shim.start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    hybrid.ca.push_fault(Fault::Status(tonic::Code::Unavailable, "away".to_owned()));
    testkit::fixture::renew(&shim)?;
    let line = shim.wait_for_log("the server does not support TLS 1.3 (SDS_SHIM_CA_TLS_MIN)").await?;
    assert!(line.contains("renewal failed: ") && line.contains("; still serving the current certificate"), "{line}");
    assert_eq!(shim.log().count("the CA rejected our client certificate"), 0);
    Ok(())
}
