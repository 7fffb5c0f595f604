//! Tokens and client certificates: who is believed, and how it is told when nobody is.

use std::time::Duration;

use openssl::x509::X509;
use testkit::{
    Failure, OrFail,
    development_ca::{Algorithm, Issued, Leaf, Pki, TokenRequest},
    fixture::{Open, renew},
    shim::Shim,
    tls,
};
use tonic::Code;

use crate::upstream::{Kind, Scene, Settings};

const HOUR: Duration = Duration::from_secs(3600);
const REFUSED: &str = "the CA rejected our client certificate";
const UNAUTHENTICATED: &str = "the CA answered UNAUTHENTICATED: request authenticate failure";

/// Starts a shim and waits for its first certificate.
async fn started(scene: &Scene) -> Result<(Shim, Open, String), Failure> {
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;
    Ok((shim, stream, first))
}

fn expired(request: &mut TokenRequest) {
    (request.not_before, request.lifetime) = (-7200, -3600);
}

fn serial(issued: &Issued) -> Result<String, Failure> {
    tls::serial(&X509::from_pem(issued.chain_pem.as_bytes()).or_fail("read a certificate")?)
}

pub(crate) async fn renewals_present_our_own_certificate_beside_the_token(kind: Kind) -> testkit::Result {
    let scene = Scene::new(kind).await?;
    let (shim, mut stream, first) = started(&scene).await?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(scene.credentials(3).await?, [(true, None), (true, Some(first)), (true, Some(second))]);
    assert_eq!(shim.log().count(REFUSED), 0);
    Ok(())
}

/// Renews twice with what is left when the token is of no use.
async fn the_certificate_alone(mut scene: Scene, spoil: impl FnOnce(&mut Scene) -> testkit::Result) -> testkit::Result {
    let (shim, mut stream, first) = started(&scene).await?;
    spoil(&mut scene)?;
    renew(&shim)?;
    let second = stream.next(&shim).await?;
    assert_eq!(second.spiffe_ids()?, [scene.workload.spiffe_id()]);
    let second = second.serial()?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(scene.credentials(3).await?, [(true, None), (false, Some(first)), (false, Some(second))]);
    Ok(())
}

pub(crate) async fn without_a_token_the_certificate_speaks_alone(kind: Kind) -> testkit::Result {
    let remove = |scene: &mut Scene| scene.workload.remove_token().or_fail("remove the token");
    the_certificate_alone(Scene::new(kind).await?, remove).await
}

pub(crate) async fn with_an_expired_token_the_certificate_speaks_alone(kind: Kind) -> testkit::Result {
    the_certificate_alone(Scene::new(kind).await?, |scene| scene.write_token(expired)).await
}

pub(crate) async fn an_expired_token_is_named_before_the_ca_is_asked(kind: Kind) -> testkit::Result {
    let mut scene = Scene::new(kind).await?;
    scene.write_token(expired)?;
    let mut shim = scene.shim().start()?;
    shim.wait_for_log("the token expired 36").await?;
    assert_eq!(scene.ca.calls(), []);
    scene.write_token(|_| {})?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(scene.credentials(1).await?, [(true, None)]);
    Ok(())
}

pub(crate) async fn a_refused_audience_is_explained_from_the_token(kind: Kind) -> testkit::Result {
    // The shim and its token agree with each other, the CA wants another audience.
    let settings = Settings { audience: "mesh".to_owned(), ..Settings::default() };
    let mut scene = Scene::with(kind, &settings).await?;
    let mut shim = scene.shim().start()?;
    let line = shim.wait_for_log(UNAUTHENTICATED).await?;
    assert!(line.contains(r#"["istio-ca"]"#), "the audience of the token: {line}");
    assert_eq!(scene.ca.calls()[0].end, Err(Code::Unauthenticated));
    shim.terminate().await?;
    scene.write_token(|request| request.audiences = vec!["other".to_owned(), "mesh".to_owned()])?;
    let mut shim = scene.shim().env("SDS_SHIM_TOKEN_AUDIENCE", "mesh").start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

pub(crate) async fn a_refused_issuer_is_explained_and_a_good_token_used_at_once(kind: Kind) -> testkit::Result {
    let mut scene = Scene::new(kind).await?;
    scene.write_token(|request| request.issuer = "https://elsewhere".to_owned())?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log(UNAUTHENTICATED).await?;
    assert!(line.contains("https://elsewhere"), "the issuer of the token: {line}");
    stream.expect_silence(&shim).await?;
    scene.write_token(|_| {})?;
    let serial = stream.next(&shim).await?.serial()?;
    let calls = scene.ca.calls();
    assert_eq!(calls.last().map(|call| call.end.clone()), Some(Ok(serial)));
    assert!(calls[..calls.len() - 1].iter().all(|call| call.end == Err(Code::Unauthenticated)));
    Ok(())
}

pub(crate) async fn tokens_with_either_signature_are_accepted(kind: Kind) -> testkit::Result {
    for algorithm in [Algorithm::Rs256, Algorithm::Es256] {
        let mut scene = Scene::new(kind).await?;
        scene.write_token(|request| request.algorithm = algorithm)?;
        started(&scene).await?;
        assert_eq!(scene.ca.calls().len(), 1, "{algorithm:?}");
    }
    Ok(())
}

pub(crate) async fn a_provisioned_certificate_is_enough_for_the_first_call(kind: Kind) -> testkit::Result {
    let mut scene = Scene::new(kind).await?;
    scene.workload.remove_token().or_fail("remove the token")?;
    let issued = scene.pki.issue(&Leaf::workload(&scene.workload.spiffe_id(), HOUR));
    let directory = scene.provision(&issued)?;
    let mut shim = scene.shim().env("PROV_CERT", directory.display().to_string()).start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(secret.spiffe_ids()?, [scene.workload.spiffe_id()]);
    assert_eq!(scene.credentials(1).await?, [(false, Some(serial(&issued)?))]);
    Ok(())
}

pub(crate) async fn a_provisioned_certificate_of_another_ca_falls_back_to_the_token(kind: Kind) -> testkit::Result {
    let scene = Scene::new(kind).await?;
    let foreign = Pki::new("other").issue(&Leaf::workload(&scene.workload.spiffe_id(), HOUR));
    let directory = scene.provision(&foreign)?;
    let mut shim = scene.shim().env("PROV_CERT", directory.display().to_string()).start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(scene.credentials(2).await?, [(true, None), (true, None)]);
    assert_eq!(
        (shim.log().count(REFUSED), shim.log().count("cannot obtain a certificate")),
        (1, 0),
        "in the same attempt"
    );
    Ok(())
}
