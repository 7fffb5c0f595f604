//! The CSR, read with OpenSSL: it asks for the SPIFFE ID and for nothing else.

use std::collections::BTreeSet;

use openssl::{
    error::ErrorStack,
    nid::Nid,
    pkey::{Id, PKeyRef, Public},
    x509::{X509, X509Req},
};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Fault},
    fixture::{Open, Site, renew, within},
    sds::Secret,
    workload::spiffe_id,
};
use tonic::Code;

/// DER of the object identifier of subjectAltName (RFC 5280, section 4.2.1.6).
const SAN: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x11];

#[derive(Debug, PartialEq)]
enum Kind {
    Curve(Nid),
    Rsa(u32),
}

fn kind(key: &PKeyRef<Public>) -> Result<Kind, ErrorStack> {
    match key.id() {
        Id::RSA => Ok(Kind::Rsa(key.bits())),
        _ => Ok(Kind::Curve(key.ec_key()?.group().curve_name().unwrap_or(Nid::UNDEF))),
    }
}

/// All names of a request in the form `TYPE:NAME`, whatever their type.
fn names(csr: &X509Req) -> Result<Vec<String>, ErrorStack> {
    // OpenSSL's binding decodes names in certificates only, so the extension is put into one.
    let mut carrier = X509::builder()?;
    for extension in &csr.extensions()? {
        carrier.append_extension2(extension)?;
    }
    let names = carrier.build().subject_alt_names();
    let text = |name: &openssl::x509::GeneralNameRef| match (name.uri(), name.dnsname(), name.email(), name.ipaddress())
    {
        (Some(uri), ..) => format!("URI:{uri}"),
        (_, Some(dns), ..) => format!("DNS:{dns}"),
        (_, _, Some(email), _) => format!("email:{email}"),
        _ => "other".to_owned(),
    };
    Ok(names.iter().flatten().map(text).collect())
}

/// Everything that holds for each CSR, whatever the key; returns the kind of its key.
fn check(pem: &str, id: &str) -> Result<Kind, ErrorStack> {
    let csr = X509Req::from_pem(pem.as_bytes())?;
    let key = csr.public_key()?;
    assert!(csr.verify(&key)?, "signed by its own key");
    assert_eq!(csr.version(), 0, "PKCS#10 has version 1 only, which is written as 0");
    assert_eq!(csr.subject_name().entries().count(), 0, "the subject is empty");
    let extensions = csr.extensions()?;
    assert_eq!(extensions.len(), 1);
    for extension in &extensions {
        assert!(extension.to_der()?.windows(SAN.len()).take(5).any(|window| window == SAN), "only a SAN");
    }
    assert_eq!(names(&csr)?, [format!("URI:{id}")]);
    kind(&key)
}

/// Starts a shim with `env` and checks the CSR that it sends, and that its key is the one that Envoy gets.
async fn asks_for(env: &[(&str, &str)], wanted: Kind) -> Result<Secret, Failure> {
    let scene = Site::new().await?;
    let mut shim = env.iter().fold(scene.shim(), |shim, (name, value)| shim.env(*name, *value)).start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let csr = scene.call(1, &shim).await?.csr;
    assert_eq!(check(&csr, &scene.workload.spiffe_id()).or_fail("read the CSR")?, wanted, "{env:?}");
    let of_csr = X509Req::from_pem(csr.as_bytes()).and_then(|csr| csr.public_key()).or_fail("read the CSR's key")?;
    assert!(of_csr.public_eq(&*secret.key()?));
    assert!(secret.key_fits_leaf()?);
    Ok(secret)
}

#[tokio::test]
async fn ecdsa_p256_is_the_default() -> testkit::Result {
    let secret = asks_for(&[], Kind::Curve(Nid::X9_62_PRIME256V1)).await?;
    assert!(secret.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"));
    Ok(())
}

#[tokio::test]
async fn p384_by_istios_variables() -> testkit::Result {
    let env = [("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")];
    asks_for(&env, Kind::Curve(Nid::SECP384R1)).await?;
    Ok(())
}

#[tokio::test]
async fn ecdsa_keys_in_the_traditional_encoding() -> testkit::Result {
    let secret = asks_for(&[("PKCS8_KEY", "false")], Kind::Curve(Nid::X9_62_PRIME256V1)).await?;
    assert!(secret.key_pem.starts_with("-----BEGIN EC PRIVATE KEY-----"));
    Ok(())
}

#[tokio::test]
async fn rsa_when_its_size_alone_is_set() -> testkit::Result {
    let secret = asks_for(&[("WORKLOAD_RSA_KEY_SIZE", "2048")], Kind::Rsa(2048)).await?;
    assert!(secret.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"));
    Ok(())
}

#[tokio::test]
async fn rsa_of_another_size_in_the_traditional_encoding() -> testkit::Result {
    let env = [("WORKLOAD_RSA_KEY_SIZE", "3072"), ("PKCS8_KEY", "false")];
    let secret = asks_for(&env, Kind::Rsa(3072)).await?;
    assert!(secret.key_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    Ok(())
}

#[tokio::test]
async fn the_ecdsa_variable_wins_over_the_rsa_size() -> testkit::Result {
    let env = [("WORKLOAD_RSA_KEY_SIZE", "2048"), ("ECC_SIGNATURE_ALGORITHM", "ECDSA")];
    asks_for(&env, Kind::Curve(Nid::X9_62_PRIME256V1)).await?;
    Ok(())
}

#[tokio::test]
async fn the_trust_domain_is_in_the_identity() -> testkit::Result {
    let options = CaOptions { trust_domain: "td.example".to_owned(), ..CaOptions::default() };
    let scene = Site::with(options).await?;
    let mut shim = scene.shim().env("TRUST_DOMAIN", "td.example").start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let id = spiffe_id("foo", "sleep").replace("cluster.local", "td.example");
    check(&scene.call(1, &shim).await?.csr, &id).or_fail("read the CSR")?;
    assert_eq!(secret.spiffe_ids()?, [id]);
    Ok(())
}

/// The distinct public keys in the CSRs that have arrived.
fn keys(scene: &Site) -> Result<BTreeSet<Vec<u8>>, Failure> {
    let key = |csr: &str| X509Req::from_pem(csr.as_bytes())?.public_key()?.public_key_to_der();
    scene.ca.calls().iter().map(|call| key(&call.csr).or_fail("read a CSR")).collect()
}

#[tokio::test]
async fn each_certificate_has_a_fresh_key() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let mut served = BTreeSet::new();
    for _ in 0..4 {
        let key = stream.next(&shim).await?.key()?;
        assert!(served.insert(key.public_key_to_der().or_fail("write a key")?), "a key came twice");
        renew(&shim)?;
    }
    stream.next(&shim).await?;
    let calls = scene.ca.calls();
    assert_eq!((calls.len(), keys(&scene)?.len()), (5, 5));
    for call in &calls {
        check(&call.csr, &scene.workload.spiffe_id()).or_fail("read a CSR")?;
    }
    Ok(())
}

#[tokio::test]
async fn the_csr_stays_the_same_over_the_retries_of_one_renewal() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "busy".to_owned())));
    let mut shim = scene.shim().start()?;
    within(&shim, "three calls", scene.ca.wait_for_calls(3)).await?;
    scene.ca.set_fault(None);
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    let csrs: BTreeSet<_> = scene.ca.calls().into_iter().map(|call| call.csr).collect();
    assert_eq!(csrs.len(), 1, "a CA can tell a repetition by its content");
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(keys(&scene)?.len(), 2);
    Ok(())
}
