//! What is certified, for how long, and what of it is served.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    nid::Nid,
    pkey::Id,
    x509::{X509, X509Req},
};
use testkit::{
    Failure, OrFail,
    development_ca::{Pki, PkiOptions},
    fixture::{Open, renew},
    sds::Secret,
};
use tonic::Code;

use crate::upstream::{Kind, Scene, Settings};

/// Seconds by which two clocks' readings may lie apart here: the tests run on loaded machines.
const LEEWAY: i64 = 30;

/// Starts a shim with `env` and returns the two secrets.
async fn served(scene: &Scene, env: &[(&str, &str)]) -> Result<(Secret, Secret), Failure> {
    let mut shim = env.iter().fold(scene.shim(), |shim, (name, value)| shim.env(*name, *value)).start()?;
    let default = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let roots = Open::connect(&mut shim, "ROOTCA").await?.next(&shim).await?;
    let call = scene.call(1, &shim).await?;
    assert_eq!(call.end, Ok(default.serial()?), "what is served is what was issued");
    assert!(default.key_fits_leaf()?);
    let asked = X509Req::from_pem(call.csr.as_bytes()).and_then(|csr| csr.public_key()).or_fail("read the CSR")?;
    assert!(asked.public_eq(&*default.key()?), "the key is the one that was certified");
    Ok((default, roots))
}

/// Seconds from now.
fn from_now(time: &Asn1TimeRef) -> Result<i64, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).or_fail("read the clock")?.as_secs();
    let now = Asn1Time::from_unix(i64::try_from(now).or_fail("read the clock")?).or_fail("read the clock")?;
    let difference = now.diff(time).or_fail("compare times")?;
    Ok(i64::from(difference.days) * 86_400 + i64::from(difference.secs))
}

fn assert_about(found: i64, wanted: i64) {
    assert!((found - wanted).abs() <= LEEWAY, "{found} s from now instead of {wanted} s");
}

fn same(found: &[X509], wanted: &[String]) -> Result<bool, Failure> {
    let wanted = X509::stack_from_pem(wanted.concat().as_bytes()).or_fail("read certificates")?;
    let der = |all: &[X509]| all.iter().map(|one| one.to_der()).collect::<Result<Vec<_>, _>>();
    Ok(der(found).or_fail("write certificates")? == der(&wanted).or_fail("write certificates")?)
}

pub(crate) async fn the_first_certificate_is_served_with_its_chain_and_roots(kind: Kind) -> testkit::Result {
    let scene = Scene::new(kind).await?;
    let (default, roots) = served(&scene, &[]).await?;
    assert_eq!(default.spiffe_ids()?, [scene.workload.spiffe_id()]);
    let (leaf, chain) = (default.leaf()?, default.chain()?);
    assert_eq!(leaf.subject_alt_names().map(|names| names.len()), Some(1));
    assert_eq!(leaf.subject_name().entries().count(), 0, "a workload has no name but its SPIFFE ID");
    assert!(same(&chain[1..], &scene.pki.intermediates())?, "leaf and intermediate, no root");
    assert!(same(&roots.trust_anchors()?, &[scene.pki.root_pem()])?);
    // Backdated by 2 minutes, so that slow clocks believe it.
    assert_about(from_now(leaf.not_before())?, -120);
    assert_about(from_now(leaf.not_after())?, 86_400);
    Ok(())
}

pub(crate) async fn every_kind_of_key_is_certified(kind: Kind) -> testkit::Result {
    let p384: &[(&str, &str)] = &[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")];
    for (env, curve, bits) in [
        (&[] as &[(&str, &str)], Some(Nid::X9_62_PRIME256V1), 256),
        (p384, Some(Nid::SECP384R1), 384),
        (&[("WORKLOAD_RSA_KEY_SIZE", "3072")], None, 3072),
    ] {
        let (default, _) = served(&Scene::new(kind).await?, env).await?;
        let key = default.key()?;
        let found = key.ec_key().ok().and_then(|key| key.group().curve_name());
        assert_eq!((found, key.bits()), (curve, bits), "{env:?}");
    }
    Ok(())
}

pub(crate) async fn istios_defaults_are_certified(kind: Kind) -> testkit::Result {
    let (default, _) = served(&Scene::new(kind).await?, &[("SDS_SHIM_COMPAT", "istio")]).await?;
    let key = default.key()?;
    assert_eq!((key.id(), key.bits()), (Id::RSA, 2048));
    assert!(default.key_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "PKCS#1");
    Ok(())
}

pub(crate) async fn the_trust_domain_is_the_cas(kind: Kind) -> testkit::Result {
    let settings = Settings { trust_domain: "td.example".to_owned(), ..Settings::default() };
    let (default, _) = served(&Scene::with(kind, &settings).await?, &[("TRUST_DOMAIN", "td.example")]).await?;
    assert_eq!(default.spiffe_ids()?, ["spiffe://td.example/ns/foo/sa/sleep"]);
    Ok(())
}

pub(crate) async fn several_roots_in_the_last_element_are_all_served(kind: Kind) -> testkit::Result {
    let extra_roots = vec![Pki::new("second").root_pem(), Pki::new("third").root_pem()];
    let settings = Settings { extra_roots: extra_roots.clone(), ..Settings::default() };
    let scene = Scene::with(kind, &settings).await?;
    // Only the first is in the workload's file: the others can come from the answer alone.
    scene.workload.write_root(&scene.pki.root_pem()).or_fail("write the root")?;
    let (default, roots) = served(&scene, &[]).await?;
    let wanted = [vec![scene.pki.root_pem()], extra_roots].concat();
    assert!(same(&roots.trust_anchors()?, &wanted)?, "{} anchors", roots.trust_anchors()?.len());
    assert!(same(&default.chain()?[1..], &scene.pki.intermediates())?);
    Ok(())
}

pub(crate) async fn a_longer_chain_is_served_and_presented(kind: Kind) -> testkit::Result {
    let pki = PkiOptions { upper: true, ..PkiOptions::new("test") };
    let mut scene = Scene::with_pki(kind, &pki, &Settings::default()).await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?;
    assert_eq!(scene.pki.intermediates().len(), 2);
    assert!(same(&first.chain()?[1..], &scene.pki.intermediates())?, "both intermediates in order, no root");
    // The CA knows its root alone, so the client has to bring the whole chain.
    scene.workload.remove_token().or_fail("remove the token")?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    let call = scene.call(2, &shim).await?;
    assert_eq!((call.credentials(), call.end), ((false, Some(first.serial()?)), Ok(second)));
    Ok(())
}

pub(crate) async fn the_lifetime_asked_for_is_followed(kind: Kind) -> testkit::Result {
    for (asked, seconds) in [("90m", 5400), ("720h", 30 * 86_400)] {
        let scene = Scene::new(kind).await?;
        let (default, _) = served(&scene, &[("SECRET_TTL", asked)]).await?;
        assert_eq!(scene.ca.calls()[0].asked, seconds);
        assert_about(from_now(default.leaf()?.not_after())?, seconds);
    }
    Ok(())
}

pub(crate) async fn too_long_a_lifetime_is_refused_and_told(kind: Kind) -> testkit::Result {
    let settings = Settings { max_ttl: Duration::from_secs(86_400), ..Settings::default() };
    let scene = Scene::with(kind, &settings).await?;
    let mut shim = scene.shim().env("SECRET_TTL", "48h").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log("the CA answered INVALID_ARGUMENT: CSR signing error").await?;
    assert!(line.contains("requested TTL 48h0m0s is greater than the max allowed TTL 24h0m0s"), "{line}");
    stream.expect_silence(&shim).await?;
    assert_eq!(scene.ca.calls()[0].end, Err(Code::InvalidArgument));
    Ok(())
}

pub(crate) async fn a_signer_by_name_changes_nothing_else(kind: Kind) -> testkit::Result {
    let scene = Scene::new(kind).await?;
    let (default, roots) = served(&scene, &[("ISTIO_META_CERT_SIGNER", "signer.example/one")]).await?;
    assert_eq!(scene.ca.calls()[0].signer.as_deref(), Some("signer.example/one"));
    assert!(same(&default.chain()?[1..], &scene.pki.intermediates())?);
    assert!(same(&roots.trust_anchors()?, &[scene.pki.root_pem()])?);
    Ok(())
}
