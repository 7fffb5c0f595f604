//! Every kind of key that the shim can be told to make works between two Envoys, and those that only mounted files can
//! bring are what the manual says of them.

use std::{fs, path::Path, time::Duration};

use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::{PKey, Private},
};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Leaf, Pki},
    scene::{Mesh, TokenSource, World},
    scratch::Scratch,
    shim::ShimBuilder,
    workload::spiffe_id,
};

/// What a cluster of the clients' Envoys has counted of its connections, as names under `cluster.NAME.ssl.`.
async fn negotiated(mesh: &Mesh, server: &str) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for client in &mesh.clients {
        let prefix = format!("cluster.{server}.ssl.");
        let stats = client.envoy.admin().stats(&prefix).await?;
        let counted = stats.into_iter().filter(|(_, count)| *count > 0);
        all.extend(counted.filter_map(|(name, _)| name.strip_prefix(&prefix).map(str::to_owned)));
    }
    Ok(all)
}

/// Four workloads with keys as these variables have them call each other.
async fn call_each_other(env: &[(&str, &str)]) -> testkit::Result {
    let (world, scratch) = (World::start(Duration::from_secs(3600)).await?, Scratch::new("tests")?);
    let edit = |shim: ShimBuilder| env.iter().fold(shim, |shim, (name, value)| shim.env(*name, *value));
    let mesh = Mesh::start(&world, scratch.path(), TokenSource::File, edit).await?;
    mesh.call_all(|_| {}).await?;
    for server in &mesh.servers {
        let seen = negotiated(&mesh, &server.name()).await?;
        for expected in ["versions.TLSv1.3", "curves.X25519MLKEM768"] {
            assert!(seen.iter().any(|name| name == expected), "{env:?}: {expected} was not used: {seen:?}");
        }
    }
    mesh.stop().await
}

#[tokio::test]
async fn p256_keys_work_between_two_envoys() -> testkit::Result {
    call_each_other(&[]).await
}

#[tokio::test]
async fn p384_keys_work_between_two_envoys() -> testkit::Result {
    call_each_other(&[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")]).await
}

#[tokio::test]
async fn rsa_keys_of_2048_bits_work_between_two_envoys() -> testkit::Result {
    call_each_other(&[("WORKLOAD_RSA_KEY_SIZE", "2048")]).await
}

#[tokio::test]
async fn rsa_keys_of_4096_bits_work_between_two_envoys() -> testkit::Result {
    call_each_other(&[("WORKLOAD_RSA_KEY_SIZE", "4096")]).await
}

/// Mounts a certificate for this key where the shim of a workload looks for it.
fn mount(directory: &Path, pki: &Pki, shim: ShimBuilder, key: &PKey<Private>) -> ShimBuilder {
    let variables = shim.variables();
    let id = spiffe_id(&variables["POD_NAMESPACE"], &variables["SERVICE_ACCOUNT"]);
    let public = key.public_key_to_pem().expect("OpenSSL writes a public key");
    let public = String::from_utf8(public).expect("PEM is ASCII");
    let leaf = pki.certify(&Leaf::workload(&id, Duration::from_secs(3600)), &public).expect("it is certified");
    let key = key.private_key_to_pem_pkcs8().expect("OpenSSL writes a key");
    let key = String::from_utf8(key).expect("PEM is ASCII");
    let bundle = directory.join(format!("{}.pem", variables["POD_NAME"].clone() + &variables["POD_NAMESPACE"]));
    fs::write(&bundle, key + &leaf + &pki.intermediate_pem()).expect("write a credential bundle");
    let anchors = directory.join("anchors.pem");
    fs::write(&anchors, pki.root_pem()).expect("write the anchors");
    shim.env("SDS_SHIM_CREDENTIAL_BUNDLE", bundle.display().to_string())
        .env("SDS_SHIM_TRUST_ANCHORS", anchors.display().to_string())
}

/// Envoy loads such a key and serves with it, and another Envoy refuses it, whichever side it is on.
async fn is_refused_by_the_other_envoy(key: &PKey<Private>) -> testkit::Result {
    let (world, scratch) = (World::with(Pki::new("demo"), CaOptions::default()).await?, Scratch::new("tests")?);
    let edit = |shim: ShimBuilder| mount(scratch.path(), &world.pki, shim, key);
    let mut mesh = Mesh::start(&world, scratch.path(), TokenSource::File, edit).await?;
    for sidecar in mesh.sidecars_mut() {
        let status = sidecar.shim.admin("/status").await?.text();
        let status: serde_json::Value = serde_json::from_str(&status).or_fail("read the status")?;
        assert_eq!(status["sds"]["resources"]["default"]["nacks"], 0, "{status:#}");
    }
    let refused = mesh.call_all(|_| {}).await.expect_err("no call is answered with 200");
    assert!(refused.to_string().contains("503"), "{refused}");
    let seen = negotiated(&mesh, &mesh.servers[0].name()).await?;
    assert!(seen.iter().any(|name| name == "connection_error"), "{seen:?}");
    mesh.stop().await
}

#[tokio::test]
async fn an_ed25519_key_is_refused_by_the_other_envoy() -> testkit::Result {
    is_refused_by_the_other_envoy(&PKey::generate_ed25519().or_fail("make a key")?).await
}

#[tokio::test]
async fn a_p521_key_is_refused_by_the_other_envoy() -> testkit::Result {
    let group = EcGroup::from_curve_name(Nid::SECP521R1).or_fail("name the curve")?;
    let key = EcKey::generate(&group).and_then(PKey::from_ec_key).or_fail("make a key")?;
    is_refused_by_the_other_envoy(&key).await
}

#[test]
fn the_configurations_of_chart_and_manual_allow_what_the_keys_need() {
    let read = |path: &str| fs::read_to_string(testkit::workspace().join(path)).expect("it is there");
    let wanted = testkit::envoy::upstream_tls_params();
    let curves: Vec<_> = wanted["ecdh_curves"].as_array().expect("a list").iter().map(|curve| curve.as_str()).collect();
    let curves = format!("[{}]", curves.into_iter().map(|curve| curve.expect("text")).collect::<Vec<_>>().join(", "));
    let (values, manual) = ("packaging/helm/sds-shim/values.yaml", "src/manual/guide/sidecar.md");
    for (file, needed) in [
        (values, format!("ecdhCurves: {curves}")),
        (manual, format!("ecdh_curves: {curves}")),
        (manual, "tls_maximum_protocol_version: TLSv1_3".to_owned()),
        ("README.md", "tls_maximum_protocol_version: TLSv1_3".to_owned()),
    ] {
        assert!(read(file).contains(&needed), "{file} has no {needed:?}");
    }
}
