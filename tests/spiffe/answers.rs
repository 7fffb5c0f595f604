//! What is told and cannot be used: the last good certificate stays, and what is wrong is told.

use openssl::{base64::decode_block, pkey::PKey, symm::Cipher};
use sds_shim_proto::spiffe::{X509svid, X509svidResponse};
use testkit::{
    OrFail, Result,
    agent::{self, Answer, der, framed, svid},
    development_ca::{Leaf, Pki},
    fixture::{Logged, Pod, QUIET, Site},
    sds,
    workload_api::at,
};

use crate::scene::{ID, LIFE, Scene, issue, shim, told};

/// A message with one part of it changed.
fn with(site: &Site, change: impl FnOnce(&mut X509svid)) -> Result<Answer> {
    let mut one = svid(&issue(site, ID), ID, &site.pki.root_pem())?;
    change(&mut one);
    Ok(Answer::Message(agent::message(one)))
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_last_good_certificate() -> testkit::Result {
    let mut scene = Scene::new(|site| told(site, &issue(site, ID), ID)).await?;
    scene.next().await?;
    let (site, other) = (&scene.site, Pki::new("other"));
    let of = |leaf: &Leaf| -> Result<Answer> {
        Ok(Answer::Message(agent::message(svid(&site.pki.issue(leaf), ID, &site.pki.root_pem())?)))
    };
    let foreign = PKey::private_key_from_pem(issue(site, ID).key_pem.as_bytes()).or_fail("read a key")?;
    let foreign: Vec<u8> = foreign.private_key_to_pkcs8().or_fail("write a key")?;
    let encrypted = PKey::private_key_from_pem(issue(site, ID).key_pem.as_bytes()).or_fail("read a key")?;
    let encrypted = encrypted.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), b"secret");
    let encrypted = String::from_utf8(encrypted.or_fail("encrypt it")?).or_fail("read it")?;
    let encrypted: String = encrypted.lines().filter(|line| !line.starts_with('-')).collect();
    let encrypted = decode_block(&encrypted).or_fail("decode it")?;
    let mut twice = svid(&issue(site, ID), ID, &site.pki.root_pem())?;
    twice.x509_svid = [&twice.x509_svid[..], &[0x30, 0x80]].concat().into();
    let cases: Vec<(Answer, &str)> = vec![
        (Answer::Message(X509svidResponse::default()), "it has no identity"),
        (with(site, |one| one.spiffe_id.clear())?, "its spiffe_id is not a SPIFFE ID with a path"),
        (with(site, |one| one.spiffe_id = "spiffe://example.org".to_owned())?, "its spiffe_id is not a SPIFFE ID"),
        (with(site, |one| one.spiffe_id = "spiffe://example.org/other".to_owned())?, "the leaf's URI SAN is"),
        (with(site, |one| one.x509_svid.clear())?, "its x509_svid is empty"),
        (with(site, |one| one.x509_svid_key.clear())?, "its x509_svid_key is empty"),
        (with(site, |one| one.bundle.clear())?, "its bundle is empty"),
        (with(site, |one| one.x509_svid_key = foreign.into())?, "the private key does not belong to the certificate"),
        (with(site, |one| one.x509_svid_key = one.x509_svid_key.slice(..100))?, "its private key cannot be parsed"),
        // Nobody is there to be asked for a passphrase.
        (with(site, |one| one.x509_svid_key = encrypted.into())?, "its private key cannot be parsed"),
        (
            with(site, |one| one.x509_svid = b"-----BEGIN CERTIFICATE-----".as_slice().into())?,
            "its certificate chain: ",
        ),
        (Answer::Message(agent::message(twice)), "its certificate chain: certificate 3 in it cannot be parsed"),
        (with(site, |one| one.bundle = vec![0x30; 500].into())?, "its bundle: certificate 1 in it cannot be parsed"),
        (with(site, |one| one.bundle = der(&other.root_pem()).unwrap_or_default())?, "does not lead to a root"),
        (of(&Leaf { not_before: -100, not_after: -10, ..Leaf::workload(ID, LIFE) })?, "a certificate is valid from"),
        (of(&Leaf { not_before: 1000, ..Leaf::workload(ID, LIFE) })?, "a certificate is valid from"),
        (of(&Leaf { client_auth: false, ..Leaf::workload(ID, LIFE) })?, "lacks clientAuth"),
        (of(&Leaf { ca: true, ..Leaf::workload(ID, LIFE) })?, "the leaf is a CA certificate"),
        (Answer::Raw(framed(b"no message")), "the message is not an X509SVIDResponse"),
        (Answer::Raw(vec![1, 0, 0, 0, 0].into()), "the message is compressed"),
        (Answer::Raw(vec![0, 0x7f, 0xff, 0xff, 0xff].into()), "the message is too large"),
        (with(site, |one| one.spiffe_id = "x".repeat(2049))?, "the message is too large"),
        (Answer::Raw(framed(&[0x12, 0].repeat(2000))), "the message has more than 1,024 fields"),
    ];
    for (answer, text) in cases {
        let mark = scene.shim.log().mark();
        scene.agent.tell(answer);
        let line = scene.shim.wait_for_log_after(mark, text).await?;
        assert!(line.contains("renewal failed: the Workload API's answer was rejected: "), "{line}");
        assert!(line.contains("; still serving the current certificate until "), "{line}");
        // What is said once is not said again: something else must come in between.
        let issued = issue(&scene.site, ID);
        scene.agent.tell(told(&scene.site, &issued, ID)?);
        let answer = scene.stream.recv().await.map_err(|failure| scene.shim.explain(failure))?;
        scene.stream.send(sds::ack(&answer, &["default"]));
        assert_eq!(sds::secrets(&answer)?.remove(0).chain_pem, issued.chain_pem, "after {text}");
    }
    scene.stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn the_configured_one_of_several_identities_is_served() -> testkit::Result {
    const OTHER: &str = "spiffe://example.org/other";
    let both = |site: &Site| -> Result<Answer> {
        let one = |id| svid(&issue(site, id), id, &site.pki.root_pem());
        Ok(Answer::Message(X509svidResponse { svids: vec![one(ID)?, one(OTHER)?], ..X509svidResponse::default() }))
    };
    let mut first = Scene::new(both).await?;
    assert_eq!(first.next().await?.spiffe_ids()?, [ID]);
    let mut wanted = Scene::with(both, |shim| shim.env("SDS_SHIM_SPIFFE_ID", OTHER)).await?;
    assert_eq!(wanted.next().await?.spiffe_ids()?, [OTHER]);
    // Nothing else is served in its place.
    let mark = wanted.shim.log().mark();
    wanted.renew()?;
    let line = wanted.shim.wait_for_log_after(mark, "SDS_SHIM_SPIFFE_ID is not among its identities").await?;
    assert!(line.contains(ID), "{line}");
    wanted.stream.expect_silence(QUIET).await
}

/// What else may serve the socket.
#[tokio::test]
async fn a_socket_of_another_user_is_reported() -> testkit::Result {
    let scene =
        Scene::with(|_| Ok(Answer::Silence), |shim| shim.env("SPIFFE_ENDPOINT_SOCKET", "unix:/proc/self/nothing"))
            .await?;
    let line = scene.shim.wait_for_log("cannot obtain a certificate: no Workload API at /proc/self/nothing: ").await?;
    assert!(line.contains("Envoy waits; retrying in"), "{line}");
    // An SDS socket is one that answers, and has no such call.
    let (site, pod) = (Site::new().await?, Pod::new().await?);
    let shim = Logged(shim(&site).env("SPIFFE_ENDPOINT_SOCKET", at(pod.shim.socket())).start()?);
    shim.wait_for_log("the Workload API answered UNIMPLEMENTED: ").await?;
    Ok(())
}
