//! Trust anchors: those of the own trust domain before the certificate that needs them, and those of others.

use testkit::{
    OrFail, Result,
    agent::{self, Answer, der, svid},
    development_ca::{Issued, Leaf, Pki},
    fixture::{Site, secret, write},
    sds,
};

use crate::scene::{ID, LIFE, Scene, issue, told};

fn federated(site: &Site, issued: &Issued, others: &[(&str, &Pki)]) -> Result<Answer> {
    let mut message = agent::message(svid(issued, ID, &site.pki.root_pem())?);
    for (name, pki) in others {
        message.federated_bundles.insert((*name).to_owned(), der(&pki.root_pem())?);
    }
    Ok(Answer::Message(message))
}

/// The bytes of `ROOTCA` as text in which names can be looked for, once they are as wanted.
async fn root_ca(scene: &mut Scene, wanted: impl Fn(&str) -> bool) -> testkit::Result {
    let mut stream = scene.shim.connect().await?.stream();
    stream.send(sds::request(&["ROOTCA"]));
    loop {
        let answer = stream.recv().await.map_err(|failure| scene.shim.explain(failure))?;
        stream.send(sds::ack(&answer, &["ROOTCA"]));
        if wanted(&String::from_utf8_lossy(&answer.resources[0].value)) {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn federated_bundles_are_trusted_each_for_its_own_trust_domain() -> testkit::Result {
    let (other, third) = (Pki::new("other"), Pki::new("third"));
    let issued = |site: &Site| issue(site, ID);
    // Both forms of names are found in the field, and the own one may be among them.
    let others = [("spiffe://other.example", &other), ("third.example", &third), ("spiffe://example.org", &other)];
    let mut scene = Scene::new(|site| federated(site, &issued(site), &others)).await?;
    scene.next().await?;
    let has = |text: &str, names: &[&str]| names.iter().all(|name| text.contains(name));
    let validator = "envoy.tls.cert_validator.spiffe";
    root_ca(&mut scene, |text| has(text, &[validator, "example.org", "other.example", "third.example"])).await?;
    // Without them it is a plain list again.
    let mut stream = scene.shim.connect().await?.stream();
    let next = issued(&scene.site);
    scene.agent.tell(told(&scene.site, &next, ID)?);
    scene.serves(&next).await?;
    root_ca(&mut scene, |text| !text.contains(validator)).await?;
    stream.send(sds::request(&["ROOTCA"]));
    let answer = stream.recv().await?;
    assert_eq!(secret(&answer, "ROOTCA")?.trusted_ca_pem, scene.site.pki.root_pem());
    // Those that cannot be used are left out and told.
    let mut message = agent::message(svid(&issued(&scene.site), ID, &scene.site.pki.root_pem())?);
    message.federated_bundles.insert("spiffe://other.example".to_owned(), der(&other.root_pem())?);
    message.federated_bundles.insert("spiffe://empty.example".to_owned(), Vec::new().into());
    message.federated_bundles.insert("no trust domain".to_owned(), der(&third.root_pem())?);
    scene.agent.tell(Answer::Message(message));
    root_ca(&mut scene, |text| has(text, &[validator, "other.example"]) && !text.contains("empty.example")).await?;
    scene.shim.wait_for_log("of empty.example: it holds no certificate; skipped").await?;
    scene.shim.wait_for_log("has a name that is not a trust domain; skipped").await?;
    Ok(())
}

/// Envoy refuses a list in which a trust domain stands twice: of one that a file names, the file counts.
#[tokio::test]
async fn a_trust_domain_that_comes_from_several_places_is_served_once() -> testkit::Result {
    let (told_of, in_file) = (Pki::new("told"), Pki::new("in a file"));
    let others = [("other.example", &told_of), ("spiffe://third.example", &told_of), ("third.example", &told_of)];
    let mut scene = Scene::with(
        |site| {
            write(&site.workload.path().join("other.pem"), &in_file.root_pem())?;
            federated(site, &issue(site, ID), &others)
        },
        // Not our own here, though it is by default.
        |shim| shim.env("SDS_SHIM_BUNDLES", "other.example=other.pem,cluster.local=other.pem"),
    )
    .await?;
    scene.next().await?;
    let count = |text: &str, name: &str| text.matches(name).count();
    root_ca(&mut scene, |text| {
        let once = ["example.org", "third.example", "cluster.local"].iter().all(|name| count(text, name) == 1);
        once && count(text, "other.example") == 1
            && text.contains(in_file.root_pem().lines().nth(5).unwrap_or_default())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn anchors_of_files_are_served_beside_the_agents() -> testkit::Result {
    let extra = Pki::new("extra").root_pem();
    let mut scene = Scene::with(
        |site| {
            write(&site.workload.path().join("extra.pem"), &extra)?;
            told(site, &issue(site, ID), ID)
        },
        |shim| shim.env("SDS_SHIM_EXTRA_ROOTS", "extra.pem"),
    )
    .await?;
    scene.next().await?;
    let client = scene.shim.connect().await?;
    let answer = client.fetch(sds::request(&["ROOTCA"])).await.or_fail("fetch")?;
    let anchors = secret(&answer, "ROOTCA")?.trusted_ca_pem;
    assert!(anchors.contains(&extra) && anchors.contains(&scene.site.pki.root_pem()));
    Ok(())
}

/// The root changes with the certificate: Envoy has the anchors first, and the old one for a while.
#[tokio::test]
async fn a_new_root_comes_before_the_certificate_under_it() -> testkit::Result {
    let mut scene = Scene::new(|site| told(site, &issue(site, ID), ID)).await?;
    scene.next().await?;
    let mut both = scene.shim.connect().await?.stream();
    both.send(sds::request(&["default", "ROOTCA"]));
    let first = both.recv().await?;
    both.send(sds::ack(&first, &["default", "ROOTCA"]));
    let other = Pki::new("next");
    let issued = other.issue(&Leaf::workload(ID, LIFE));
    scene.agent.tell(Answer::Message(agent::message(svid(&issued, ID, &other.root_pem())?)));
    let before = secret(&first, "default")?.chain_pem;
    let mut anchors = secret(&first, "ROOTCA")?.trusted_ca_pem;
    loop {
        let answer = both.recv().await.map_err(|failure| scene.shim.explain(failure))?;
        both.send(sds::ack(&answer, &["default", "ROOTCA"]));
        if let Ok(roots) = secret(&answer, "ROOTCA") {
            anchors = roots.trusted_ca_pem;
        }
        match secret(&answer, "default") {
            Ok(certificate) if certificate.chain_pem != before => {
                assert_eq!(certificate.chain_pem, issued.chain_pem);
                assert!(anchors.contains(&other.root_pem()), "the certificate came first");
                assert!(anchors.contains(&scene.site.pki.root_pem()), "the old root is gone at once");
                return Ok(());
            }
            _ => {}
        }
    }
}
