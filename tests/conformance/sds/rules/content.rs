use openssl::x509::X509;
use serde_json::json;
use testkit::{
    OrFail,
    development_ca::{CaOptions, Fault, Pki},
    fixture::secret,
    sds::{self, Secret},
};

use crate::subject::{Implementation, Setup, Subject};

async fn default_of(subject: &Subject) -> Result<Secret, testkit::Failure> {
    secret(&subject.ask(&["default"]).await?.1, "default")
}

async fn rootca_of(subject: &Subject) -> Result<Secret, testkit::Failure> {
    secret(&subject.ask(&["ROOTCA"]).await?.1, "ROOTCA")
}

fn der(pem: &str) -> Result<Vec<u8>, testkit::Failure> {
    X509::from_pem(pem.as_bytes()).and_then(|x509| x509.to_der()).or_fail("read a certificate")
}

fn ders(all: &[X509]) -> Vec<Vec<u8>> {
    all.iter().filter_map(|x509| x509.to_der().ok()).collect()
}

pub(super) async fn default_is_a_certificate(of: Implementation) -> testkit::Result {
    let secret = default_of(&Subject::new(of).await?).await?;
    assert!(secret.key_fits_leaf()?);
    assert!(secret.trusted_ca_pem.is_empty() && secret.crl_pem.is_empty());
    Ok(())
}

pub(super) async fn rootca_is_anchors(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let secret = rootca_of(&subject).await?;
    assert_eq!(ders(&secret.trust_anchors()?), [der(&subject.site.pki.root_pem())?]);
    assert!(secret.key_pem.is_empty() && secret.chain_pem.is_empty());
    Ok(())
}

pub(super) async fn spiffe_id(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    assert_eq!(default_of(&subject).await?.spiffe_ids()?, [subject.site.workload.spiffe_id()]);
    Ok(())
}

pub(super) async fn key_is_strong(of: Implementation) -> testkit::Result {
    let key = default_of(&Subject::new(of).await?).await?.key()?;
    assert!(key.bits() >= if key.rsa().is_ok() { 2048 } else { 256 }, "{} bits", key.bits());
    Ok(())
}

pub(super) async fn chain_is_in_order(of: Implementation) -> testkit::Result {
    let chain = default_of(&Subject::new(of).await?).await?.chain()?;
    assert!(chain.len() > 1);
    for pair in chain.windows(2) {
        assert_eq!(pair[0].issuer_name().to_der().ok(), pair[1].subject_name().to_der().ok());
    }
    Ok(())
}

pub(super) async fn chain_has_no_root(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let root = der(&subject.site.pki.root_pem())?;
    assert!(!ders(&default_of(&subject).await?.chain()?).contains(&root));
    Ok(())
}

pub(super) async fn fresh_key(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, first) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&first, &["default"]));
    let next = secret(&stream.recv().await?, "default")?;
    assert!(next.key_fits_leaf()? && next.key_pem != secret(&first, "default")?.key_pem);
    Ok(())
}

/// What is served after the CA's answer was changed in this way.
async fn answered(
    of: Implementation,
    edit: impl Fn(Vec<String>) -> Vec<String> + Send + Sync + 'static,
) -> Result<(Secret, Vec<X509>), testkit::Failure> {
    let setup = Setup::new(of).await?;
    setup.site.ca.set_fault(Some(Fault::mutate(edit)));
    let subject = setup.start().await?;
    Ok((default_of(&subject).await?, rootca_of(&subject).await?.trust_anchors()?))
}

pub(super) async fn glued_pem(of: Implementation) -> testkit::Result {
    // As some CAs write them: no line break at the end of one element (istio/istio#22530).
    let (secret, _) = answered(of, |chain| chain.iter().map(|element| element.trim_end().to_owned()).collect()).await?;
    assert!(!secret.chain_pem.contains("----------"), "two blocks stand on one line");
    assert!(secret.chain()?.len() >= 2 && secret.key_fits_leaf()?);
    Ok(())
}

/// The answer with its last element made from what it was.
fn with_roots(mut chain: Vec<String>, edit: impl Fn(&str) -> String) -> Vec<String> {
    if let Some(root) = chain.last_mut() {
        *root = edit(root);
    }
    chain
}

pub(super) async fn duplicate_roots(of: Implementation) -> testkit::Result {
    let (_, anchors) = answered(of, |chain| with_roots(chain, |root| format!("{root}{root}"))).await?;
    assert_eq!(anchors.len(), 1);
    Ok(())
}

pub(super) async fn several_roots(of: Implementation) -> testkit::Result {
    let other = Pki::new("another root").root_pem();
    let expected = der(&other)?;
    let (_, anchors) = answered(of, move |chain| with_roots(chain, |root| format!("{root}{other}"))).await?;
    assert!(anchors.len() == 2 && ders(&anchors).contains(&expected), "{}", anchors.len());
    Ok(())
}

pub(super) async fn bad_anchor(of: Implementation) -> testkit::Result {
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let (_, anchors) = answered(of, move |chain| with_roots(chain, |root| format!("{bad}{root}"))).await?;
    assert_eq!(anchors.len(), 1);
    Ok(())
}

pub(super) async fn mesh_anchors(of: Implementation) -> testkit::Result {
    let other = Pki::new("mesh").root_pem();
    let setup = Setup::with_options(of, CaOptions::default()).await?;
    let subject = setup.proxy_config("caCertificatesPem", json!([other])).start().await?;
    subject.ask(&["default"]).await?;
    assert!(ders(&rootca_of(&subject).await?.trust_anchors()?).contains(&der(&other)?));
    Ok(())
}
