//! Another trust domain of our own, without a restart: a certificate is obtained under the new name while the old one is
//! served, and for as long as the CA refuses the new name the old one is kept and renewed.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, Call, Fault, Issued, Leaf, Outcome, Pki, TokenRequest},
    fixture::{Open, Site, renew, token, tokens, write},
    mtls_server::MtlsServer,
    sds::Secret,
    shim::{Shim, ShimBuilder},
};
use tokio::time::{Instant, sleep};
use tonic::Code;

const OLD: &str = "cluster.local";
const NEW: &str = "new.example";
const FILE: &str = "trust-domain";

fn id(domain: &str) -> String {
    format!("spiffe://{domain}/ns/foo/sa/sleep")
}

fn with_file(shim: ShimBuilder) -> ShimBuilder {
    shim.env("SDS_SHIM_TRUST_DOMAIN_FILE", format!("./{FILE}"))
}

/// A workload whose file tells the old trust domain, and whose CA issues in these.
struct Served {
    scene: Site,
    shim: Shim,
    default: Open,
    roots: Open,
}

impl Served {
    async fn start(domains: &[&str], edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let scene = Site::new().await?;
        scene.ca.set_trust_domains(domains);
        write(&scene.workload.path().join(FILE), &format!("{OLD}\n"))?;
        let mut shim = edit(with_file(scene.shim())).start()?;
        let client = shim.connect().await?;
        let (default, roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        let mut served = Self { scene, shim, default, roots };
        served.certificate(OLD).await?;
        served.roots.next(&served.shim).await?;
        Ok(served)
    }

    fn file(&self) -> PathBuf {
        self.scene.workload.path().join(FILE)
    }

    /// The next certificate that is pushed, which must be of this trust domain.
    async fn certificate(&mut self, domain: &str) -> Result<Secret, Failure> {
        let secret = self.default.next(&self.shim).await?;
        assert_eq!(secret.spiffe_ids()?, [id(domain)]);
        assert!(secret.key_fits_leaf()?);
        Ok(secret)
    }

    async fn workload(&mut self) -> Result<Value, Failure> {
        let status = self.shim.admin("/status").await?.text();
        let mut status: Value = serde_json::from_str(&status).or_fail("read the status")?;
        assert_eq!(status["ready"], true, "{status:#}");
        Ok(status["workloads"][0].take())
    }

    /// Waits until the status tells that this identity is held and, if it is another one, that one wanted.
    async fn identities(&mut self, held: &str, wanted: Option<&str>) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let workload = self.workload().await?;
            let is = |name: &str, domain: Option<&str>| workload[name] == json!(domain.map(id));
            if is("identity", Some(held)) && is("wanted_identity", wanted) && workload["asking"] == false {
                return Ok(workload);
            }
            if Instant::now() > deadline {
                return Err(self.shim.failure(format!("{held} and {wanted:?} are not told: {workload:#}")));
            }
            sleep(POLL).await;
        }
    }

    fn last_call(&self) -> Result<Call, Failure> {
        self.scene.ca.calls().pop().ok_or_else(|| Failure::new("the CA was not asked"))
    }
}

fn presented(call: &Call) -> Option<String> {
    call.peer.as_ref().and_then(|peer| peer.spiffe_id.clone())
}

#[tokio::test]
async fn a_new_trust_domain_is_moved_to_while_the_old_certificate_is_served() -> testkit::Result {
    let mut served = Served::start(&[OLD, NEW], |shim| shim).await?;
    write(&served.file(), NEW)?;
    let first = served.certificate(NEW).await?.serial()?;
    assert_eq!(presented(&served.last_call()?), None, "the certificate of the old identity must not speak for us");
    let workload = served.identities(NEW, None).await?;
    assert!(workload["trouble"].is_null(), "{workload:#}");
    served.shim.wait_for_log(&format!("identity changed to {} (was {})", id(NEW), id(OLD))).await?;
    // From then on all is as before, with the new name.
    renew(&served.shim)?;
    assert_ne!(served.certificate(NEW).await?.serial()?, first);
    assert_eq!(presented(&served.last_call()?), Some(id(NEW)));
    served.roots.expect_silence(&served.shim).await?;
    assert_eq!(served.scene.issued().len(), 3);
    // And back.
    write(&served.file(), OLD)?;
    served.certificate(OLD).await?;
    Ok(())
}

/// A CA whose trust domain is another one now has other roots as well: who holds old certificates must verify new ones.
#[tokio::test]
async fn new_anchors_are_taken_before_the_certificate_and_old_ones_stay() -> testkit::Result {
    let mut served = Served::start(&[OLD, NEW], |shim| shim).await?;
    let new_root = Pki::new("of the new trust domain").root_pem();
    served.scene.ca.set_extra_roots(vec![new_root.clone()]);
    write(&served.file(), NEW)?;
    served.scene.ca.wait_for_outcomes(2).await;
    // The anchors are acknowledged only when they are read, and the certificate waits for that.
    served.default.expect_silence(&served.shim).await?;
    let anchors = served.roots.next(&served.shim).await?.trusted_ca_pem;
    assert_eq!(anchors, served.scene.pki.root_pem() + &new_root);
    served.certificate(NEW).await?;
    // What the CA drops is kept for as long as old certificates may live.
    served.scene.ca.set_extra_roots(Vec::new());
    renew(&served.shim)?;
    served.certificate(NEW).await?;
    served.roots.expect_silence(&served.shim).await
}

#[tokio::test]
async fn a_refused_trust_domain_leaves_the_old_identity_served_and_renewed() -> testkit::Result {
    let mut served = Served::start(&[OLD], |shim| shim).await?;
    served.scene.ca.set_ttl(Some(Duration::from_secs(6)));
    renew(&served.shim)?;
    served.certificate(OLD).await?;
    write(&served.file(), NEW)?;
    let workload = served.identities(OLD, Some(NEW)).await?;
    let trouble = workload["trouble"]["text"].as_str().unwrap_or_default();
    assert!(trouble.starts_with(&format!("as {}: ", id(NEW))) && trouble.contains("PERMISSION_DENIED"), "{trouble}");
    served.shim.wait_for_log(&format!("renewal failed: as {}: the CA", id(NEW))).await?;
    let metrics = served.shim.admin("/metrics").await?.text();
    let pending = format!("sds_shim_identity_pending{{identity=\"{}\",wanted=\"{}\"}} 1", id(OLD), id(NEW));
    assert!(metrics.contains(&pending), "{metrics}");
    // On its own schedule, and when it is asked for.
    served.certificate(OLD).await?;
    served.certificate(OLD).await?;
    assert_eq!(presented(&served.last_call()?), Some(id(OLD)));
    served.scene.ca.set_ttl(None);
    renew(&served.shim)?;
    served.certificate(OLD).await?;
    let asked = |call: &Call| matches!(&call.outcome, Outcome::Refused { code: Code::PermissionDenied, .. });
    let refused = served.scene.ca.calls().iter().filter(|call| asked(call)).count();
    assert!(refused >= 3, "the new identity was asked for {refused} times only");
    let workload = served.identities(OLD, Some(NEW)).await?;
    assert_eq!(workload["trouble"]["reason"], "unauthenticated", "{workload:#}");
    // Once the CA knows the new trust domain, nothing more is needed.
    served.scene.ca.set_trust_domains(&[NEW]);
    served.certificate(NEW).await?;
    let workload = served.identities(NEW, None).await?;
    assert!(workload["trouble"].is_null(), "{workload:#}");
    let metrics = served.shim.admin("/metrics").await?.text();
    assert!(metrics.contains(&format!("wanted=\"{}\"}} 0", id(NEW))) && !metrics.contains(&id(OLD)), "{metrics}");
    Ok(())
}

/// As an istiod does it: whatever the CSR says, the certificate is in the CA's own trust domain.
#[tokio::test]
async fn another_trust_domain_from_the_ca_is_followed_once_the_file_names_it() -> testkit::Result {
    let mut served = Served::start(&[OLD], |shim| shim).await?;
    let name = |domain: &'static str| {
        Fault::sign(move |sign| sign.leaf = Leaf::workload(&id(domain), Duration::from_secs(600)))
    };
    served.scene.ca.set_fault(Some(name(NEW)));
    renew(&served.shim)?;
    served.shim.wait_for_log(&format!("the leaf's URI SAN is [\"{}\"], our SPIFFE ID is {}", id(NEW), id(OLD))).await?;
    served.default.expect_silence(&served.shim).await?;
    served.scene.ca.set_trust_domains(&[OLD, NEW]);
    write(&served.file(), NEW)?;
    served.certificate(NEW).await?;
    // And where the file is ahead of the CA, what the CA issues in is renewed.
    served.scene.ca.set_fault(Some(name(OLD)));
    served.scene.ca.set_trust_domains(&[NEW, "third.example"]);
    write(&served.file(), "third.example")?;
    served.identities(NEW, Some("third.example")).await?;
    served.scene.ca.set_fault(Some(name(NEW)));
    renew(&served.shim)?;
    served.certificate(NEW).await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_ca_delays_the_move_and_costs_nothing_else() -> testkit::Result {
    let mut served = Served::start(&[OLD, NEW], |shim| shim).await?;
    served.scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for the test".to_owned())));
    write(&served.file(), NEW)?;
    served.identities(OLD, Some(NEW)).await?;
    served.default.expect_silence(&served.shim).await?;
    // Who changes his mind in time gets what he had.
    write(&served.file(), OLD)?;
    served.identities(OLD, None).await?;
    write(&served.file(), NEW)?;
    served.identities(OLD, Some(NEW)).await?;
    served.scene.ca.set_fault(None);
    served.certificate(NEW).await?;
    Ok(())
}

#[tokio::test]
async fn an_invalid_trust_domain_is_reported_and_changes_nothing() -> testkit::Result {
    let mut served = Served::start(&[OLD, NEW], |shim| shim).await?;
    let file = served.file();
    for (content, told) in [
        ("", "a trust domain has only lower-case letters"),
        ("New.Example", "a trust domain has only lower-case letters"),
        ("new.example/ns/foo", "a trust domain has only lower-case letters"),
        ("new.example\nother.example", "a trust domain has only lower-case letters"),
    ] {
        let mark = served.shim.log().mark();
        write(&file, content)?;
        served.shim.wait_for_log_after(mark, told).await?;
        // The next one is another mistake only after a good one.
        let mark = served.shim.log().mark();
        write(&file, OLD)?;
        served.shim.wait_for_log_after(mark, "is usable again").await?;
    }
    fs::remove_file(&file).or_fail("remove the file")?;
    served.shim.wait_for_log("trust-domain: No such file or directory").await?;
    served.shim.wait_for_log(&format!("still {OLD}")).await?;
    served.default.expect_silence(&served.shim).await?;
    assert_eq!(served.scene.issued().len(), 1, "the CA was not asked for any of it");
    write(&file, &format!(" \t{NEW} \n\n"))?;
    served.certificate(NEW).await?;
    Ok(())
}

#[tokio::test]
async fn at_the_start_the_variable_holds_as_long_as_the_file_is_of_no_use() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_trust_domains(&["from.variable", NEW]);
    let mut shim = with_file(scene.shim()).env("TRUST_DOMAIN", "from.variable").start()?;
    let mut default = Open::connect(&mut shim, "default").await?;
    assert_eq!(default.next(&shim).await?.spiffe_ids()?, [id("from.variable")]);
    shim.wait_for_log("still from.variable").await?;
    write(&scene.workload.path().join(FILE), NEW)?;
    assert_eq!(default.next(&shim).await?.spiffe_ids()?, [id(NEW)]);
    // A restart takes the file's at once.
    shim.terminate().await?;
    let mut shim = with_file(scene.shim()).env("TRUST_DOMAIN", "from.variable").start()?;
    let mut default = Open::connect(&mut shim, "default").await?;
    assert_eq!(default.next(&shim).await?.spiffe_ids()?, [id(NEW)]);
    Ok(())
}

/// Whoever has brought a token moves on the stream that is open, and who comes later begins where all are.
#[tokio::test]
async fn request_borne_identities_move_as_well() -> testkit::Result {
    let scene = Site::without_token(CaOptions::default()).await?;
    scene.ca.set_trust_domains(&[OLD, NEW]);
    let file = scene.workload.path().join(FILE);
    write(&file, OLD)?;
    let shim = with_file(scene.shim()).env("SDS_SHIM_TOKEN_SOURCE", "request");
    let mut shim = shim.without("POD_NAMESPACE").without("SERVICE_ACCOUNT").start()?;
    let client = shim.connect().await?.with_token(&token())?;
    let mut default = Open::new(&client, "default");
    assert_eq!(default.next(&shim).await?.spiffe_ids()?, [id(OLD)]);
    write(&file, NEW)?;
    assert_eq!(default.next(&shim).await?.spiffe_ids()?, [id(NEW)]);
    let other = tokens().mint(&TokenRequest::new("foo", "other"));
    let client = shim.connect().await?.with_token(&other)?;
    let first = Open::new(&client, "default").next(&shim).await?;
    assert_eq!(first.spiffe_ids()?, [id(NEW).replace("sleep", "other")]);
    Ok(())
}

fn peer_id(domain: &str) -> String {
    format!("spiffe://{domain}/ns/bar/sa/peer")
}

fn peer(pki: &Pki, domain: &str) -> Issued {
    pki.issue(&Leaf::workload(&peer_id(domain), Duration::from_secs(3600)))
}

#[tokio::test]
async fn with_separate_trust_domains_our_anchors_vouch_for_both_of_ours() -> testkit::Result {
    let (scene, other) = (Site::new().await?, Pki::new("other"));
    scene.ca.set_trust_domains(&[OLD, NEW]);
    let path = scene.workload.path();
    write(&path.join(FILE), OLD)?;
    write(&path.join("other.pem"), &other.root_pem())?;
    let names = [OLD, NEW, "other.example"].map(peer_id);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let edit = |shim: ShimBuilder| with_file(shim).env("SDS_SHIM_BUNDLES", "other.example=./other.pem");
    let gate = MtlsServer::start(scene, &names, edit).await?;
    let ours = &gate.scene.pki;
    assert!(gate.lets_in(&peer(ours, OLD)).await? && !gate.lets_in(&peer(ours, NEW)).await?);
    write(&gate.scene.workload.path().join(FILE), NEW)?;
    gate.until("peers of the new trust domain come in", || async { gate.lets_in(&peer(ours, NEW)).await }).await?;
    gate.until("the new identity is used", || async {
        let used = gate.envoy.admin().certificates().await?;
        Ok(!used.is_empty() && used.iter().all(|one| one.uris == [id(NEW)]))
    })
    .await?;
    assert!(gate.lets_in(&peer(ours, OLD)).await?, "peers that have not moved yet");
    assert!(gate.lets_in(&peer(&other, "other.example")).await?);
    for domain in [OLD, NEW] {
        assert!(!gate.lets_in(&peer(&other, domain)).await?, "the other one must not vouch for {domain}");
    }
    assert!(!gate.lets_in(&peer(ours, "other.example")).await?, "nor we for that");
    Ok(())
}

/// It has the name that it has, and so have its peers.
#[tokio::test]
async fn our_anchors_vouch_for_the_trust_domain_of_a_mounted_certificate_as_well() -> testkit::Result {
    let (scene, other) = (Site::new().await?, Pki::new("other"));
    let path = scene.workload.path();
    let mount = path.join("etc/certs");
    fs::create_dir_all(&mount).or_fail("make the mount")?;
    let Issued { chain_pem, key_pem } = scene.issue(&id(OLD));
    let root_pem = scene.pki.root_pem();
    for (file, content) in [("cert-chain.pem", chain_pem), ("key.pem", key_pem), ("root-cert.pem", root_pem)] {
        write(&mount.join(file), &content)?;
    }
    write(&path.join(FILE), OLD)?;
    write(&path.join("other.pem"), &other.root_pem())?;
    let edit = |shim: ShimBuilder| {
        let shim = with_file(shim).env("FILE_MOUNTED_CERTS", "true");
        shim.env("SDS_SHIM_BUNDLES", "other.example=./other.pem")
    };
    let names = [OLD, NEW].map(peer_id);
    let gate = MtlsServer::start(scene, &names.each_ref().map(String::as_str), edit).await?;
    let ours = &gate.scene.pki;
    assert!(gate.lets_in(&peer(ours, OLD)).await? && !gate.lets_in(&peer(ours, NEW)).await?);
    write(&gate.scene.workload.path().join(FILE), NEW)?;
    gate.until("peers of the new trust domain come in", || async { gate.lets_in(&peer(ours, NEW)).await }).await?;
    assert!(gate.lets_in(&peer(ours, OLD)).await?, "ours is of the old one still");
    assert!(!gate.lets_in(&peer(&other, OLD)).await?, "the other one must not vouch for it");
    assert_eq!(gate.scene.ca.connections(), 0, "nobody asks the CA");
    Ok(())
}

/// A writer that has run wild must not turn into as many calls to the CA.
#[tokio::test]
async fn a_file_that_changes_all_the_time_costs_one_call_a_second() -> testkit::Result {
    let served = Served::start(&[OLD, NEW], |shim| shim).await?;
    let (before, since) = (served.scene.ca.calls().len(), Instant::now());
    const CHANGES: usize = 200;
    for number in 0..CHANGES {
        let mark = served.shim.log().mark();
        write(&served.file(), [NEW, OLD][number % 2])?;
        served.shim.wait_for_log_after(mark, "trust-domain: trust domain changed to").await?;
    }
    let (calls, most) = (served.scene.ca.calls().len() - before, since.elapsed().as_secs() as usize + 1);
    println!("{calls} calls for {CHANGES} changes in {:?}", since.elapsed());
    assert!(calls <= most, "{calls} calls for {CHANGES} changes in {:?}", since.elapsed());
    Ok(())
}
