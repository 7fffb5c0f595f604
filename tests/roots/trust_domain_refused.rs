//! The CA does not give us the trust domain that the file tells, for whichever reason and at however many addresses:
//! what is held is renewed all the same, and who starts gets what those who run have.

use std::{sync::Arc, time::Duration};

use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, ClientCertificates, DevelopmentCa, Fault, Leaf, PlainAnswer},
    fixture::{Open, Site, renew, tokens, write},
    shim::{Shim, ShimBuilder},
};
use tonic::Code;

const OLD: &str = "cluster.local";
const NEW: &str = "new.example";

fn id(domain: &str) -> String {
    format!("spiffe://{domain}/ns/foo/sa/sleep")
}

/// A workload whose file tells a trust domain.
struct Told {
    scene: Site,
    shim: Shim,
    stream: Open,
}

impl Told {
    async fn start(scene: Site, domain: &str, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        write(&scene.workload.path().join("trust-domain"), domain)?;
        let shim = scene
            .shim()
            .env("SDS_SHIM_TRUST_DOMAIN_FILE", "./trust-domain")
            .env("SDS_SHIM_CA_TIMEOUT", "1s")
            .env("SDS_SHIM_CA_ANSWER_TIMEOUT", "1s");
        let mut shim = edit(shim).start()?;
        let stream = Open::connect(&mut shim, "default").await?;
        Ok(Self { scene, shim, stream })
    }

    /// The same, with a certificate of the old trust domain, and a CA that refuses the new one, as it has done once.
    async fn refused(scene: Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        scene.ca.set_trust_domains(&[OLD]);
        let mut told = Self::start(scene, OLD, edit).await?;
        told.certificate(OLD).await?;
        told.tell(NEW)?;
        told.shim.wait_for_log(&format!("renewal failed: as {}: ", id(NEW))).await?;
        Ok(told)
    }

    fn tell(&self, domain: &str) -> testkit::Result {
        write(&self.scene.workload.path().join("trust-domain"), domain)
    }

    /// The next certificate that is pushed is of this trust domain.
    async fn certificate(&mut self, domain: &str) -> testkit::Result {
        assert_eq!(self.stream.next(&self.shim).await?.spiffe_ids()?, [id(domain)]);
        Ok(())
    }
}

#[tokio::test]
async fn the_current_certificate_is_renewed_however_the_ca_rejects_the_new_name() -> testkit::Result {
    let headers = vec![("retry-after".to_owned(), "60".to_owned())];
    let busy = PlainAnswer { status: 503, headers, body: String::new() };
    let mut told = Told::refused(Site::new().await?, |shim| shim).await?;
    for fault in [
        Fault::Status(Code::ResourceExhausted, "one name a minute".to_owned()),
        Fault::Http(busy),
        // It waits for somebody who approves of the name.
        Fault::Hang,
        Fault::Break,
        Fault::Status(Code::InvalidArgument, "no such trust domain".to_owned()),
    ] {
        told.scene.ca.push_fault(fault);
        renew(&told.shim)?;
        told.certificate(OLD).await?;
    }
    told.scene.ca.set_trust_domains(&[NEW]);
    renew(&told.shim)?;
    told.certificate(NEW).await
}

#[tokio::test]
async fn an_address_that_is_down_does_not_hide_the_refusal_of_another() -> testkit::Result {
    let scene = Site::new().await?;
    let addresses = format!("127.0.0.1:1,localhost:{}", scene.ca.address().port());
    let mut told = Told::refused(scene, |shim| shim.env("CA_ADDR", addresses)).await?;
    renew(&told.shim)?;
    told.certificate(OLD).await
}

/// As two istiods do it, each in its own trust domain, whatever the CSR says.
#[tokio::test]
async fn the_ca_that_has_the_name_is_found_also_after_an_outage_of_both() -> testkit::Result {
    let scene = Site::new().await?;
    let options = CaOptions { server_pki: Some(Arc::clone(&scene.pki)), ..CaOptions::default() };
    let other = DevelopmentCa::start(Arc::clone(&scene.pki), tokens(), options).await.or_fail("start another CA")?;
    let addresses = [&scene.ca, &other].map(|ca| format!("localhost:{}", ca.address().port())).join(",");
    let of = |domain: &'static str| {
        Fault::sign(move |sign| sign.leaf = Leaf::workload(&id(domain), Duration::from_secs(3600)))
    };
    for ca in [&scene.ca, &other] {
        ca.set_trust_domains(&[OLD, NEW]);
    }
    scene.ca.set_fault(Some(of(OLD)));
    other.set_fault(Some(of(NEW)));
    let mut told = Told::start(scene, OLD, |shim| shim.env("CA_ADDR", addresses)).await?;
    told.certificate(OLD).await?;
    let away = || Some(Fault::Status(Code::Unavailable, "away".to_owned()));
    told.scene.ca.set_fault(away());
    other.set_fault(away());
    told.tell(NEW)?;
    told.shim.wait_for_log(&format!("renewal failed: as {}: ", id(NEW))).await?;
    // From now on what is held is due.
    renew(&told.shim)?;
    told.shim.wait_for_log("requesting the previous identity failed as well").await?;
    other.set_fault(Some(of(NEW)));
    told.scene.ca.set_fault(Some(of(OLD)));
    told.certificate(NEW).await?;
    // And back, with one attempt.
    told.tell(OLD)?;
    told.certificate(OLD).await
}

#[tokio::test]
async fn a_start_while_the_ca_rejects_the_new_name_uses_the_configured_one() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_trust_domains(&[OLD]);
    let mut told = Told::start(scene, NEW, |shim| shim).await?;
    told.certificate(OLD).await?;
    told.shim.wait_for_log(&format!("renewal failed: as {}: the CA answered PERMISSION_DENIED", id(NEW))).await?;
    told.scene.ca.set_trust_domains(&[OLD, NEW]);
    renew(&told.shim)?;
    told.certificate(NEW).await
}

#[tokio::test]
async fn when_neither_name_is_issued_both_reasons_are_reported() -> testkit::Result {
    let mut told = Told::refused(Site::new().await?, |shim| shim).await?;
    let mark = told.shim.log().mark();
    told.scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for all".to_owned())));
    renew(&told.shim)?;
    let both = format!(
        "as {}: the CA answered UNAVAILABLE: down for all; requesting the previous identity failed as well: the \
         CA answered UNAVAILABLE: down for all",
        id(NEW)
    );
    told.shim.wait_for_log_after(mark, &both).await?;
    told.scene.ca.set_fault(None);
    told.certificate(OLD).await
}

/// That the CA refuses a name is no reason to believe that it does not like our certificate: without that, it refuses
/// both.
#[tokio::test]
async fn a_refused_name_casts_no_doubt_on_the_client_certificate() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_client_certificates(ClientCertificates::Require);
    let directory = scene.provision(&scene.issue(&id(OLD)))?;
    let edit = |shim: ShimBuilder| shim.env("PROV_CERT", directory.display().to_string());
    let mut told = Told::refused(scene, edit).await?;
    for _ in 0..3 {
        renew(&told.shim)?;
        told.certificate(OLD).await?;
    }
    assert!(!told.shim.log().contains("the CA rejected our client certificate"));
    Ok(())
}
