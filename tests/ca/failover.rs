//! Several addresses in CA_ADDR: asked in their order, those that failed lately come last.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, DevelopmentCa, Fault, Pki},
    fixture::{Open, Site, attempts::failed, renew, tokens, within},
    sds::{self, SdsStream},
    shim::Shim,
};
use tonic::Code;

const ELSEWHERE: &str = "CA failover: the preferred address did not answer, another one did";
const BACK: &str = "CA failover: back on the preferred address";
fn down(words: &str) -> Option<Fault> {
    Some(Fault::Status(Code::Unavailable, words.to_owned()))
}

/// A workload with several CAs, the scene's own first.
struct Several {
    scene: Site,
    others: Vec<DevelopmentCa>,
}

impl Several {
    /// CAs of one PKI.
    async fn alike(count: usize) -> Result<Self, Failure> {
        let scene = Site::new().await?;
        let pkis = vec![Arc::clone(&scene.pki); count - 1];
        Self::with(scene, pkis).await
    }

    /// The scene's own CA, and one for each of these PKIs. All server certificates are of the first PKI.
    async fn with(scene: Site, pkis: Vec<Arc<Pki>>) -> Result<Self, Failure> {
        let mut others = Vec::new();
        for pki in pkis {
            let options = CaOptions { server_pki: Some(Arc::clone(&scene.pki)), ..CaOptions::default() };
            others.push(DevelopmentCa::start(pki, tokens(), options).await.or_fail("start another CA")?);
        }
        Ok(Self { scene, others })
    }

    fn cas(&self) -> impl Iterator<Item = &DevelopmentCa> {
        std::iter::once(&self.scene.ca).chain(&self.others)
    }

    fn start(&self) -> Result<Shim, Failure> {
        let addresses: Vec<_> = self.cas().map(|ca| format!("localhost:{}", ca.address().port())).collect();
        self.scene.shim().env("CA_ADDR", addresses.join(", ")).env("SDS_SHIM_LOG", "debug").start()
    }

    /// How often each was asked.
    fn asked(&self) -> Vec<usize> {
        self.cas().map(|ca| ca.calls().len()).collect()
    }
}

#[tokio::test]
async fn the_first_that_answers_is_asked_and_one_that_failed_comes_last() -> testkit::Result {
    let several = Several::alike(2).await?;
    let [first, second] = [&several.scene.ca, &several.others[0]];
    let mut shim = several.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let steps = [
        (None, None, [1, 0], "the first alone, as long as it answers"),
        (None, None, [2, 0], "and again"),
        (down("away"), None, [3, 1], "both in one attempt"),
        (None, None, [3, 2], "the one that failed is not tried first"),
        (None, down("away"), [4, 3], "now that the other has failed it is"),
        (None, None, [5, 3], "and remains so"),
    ];
    for (step, (one, two, asked, what)) in steps.into_iter().enumerate() {
        first.set_fault(one);
        second.set_fault(two);
        if step > 0 {
            renew(&shim)?;
        }
        stream.next(&shim).await?;
        assert_eq!(several.asked(), asked, "{what}");
    }
    assert_eq!((shim.log().count(ELSEWHERE), shim.log().count(BACK)), (1, 1));
    assert_eq!(shim.log().count("renewal failed"), 0, "no attempt failed as a whole");
    Ok(())
}

#[tokio::test]
async fn when_none_answers_each_attempt_tries_all_and_names_each_once() -> testkit::Result {
    let several = Several::alike(3).await?;
    for (ca, words) in several.cas().zip(["one", "two", "three"]) {
        ca.set_fault(down(words));
    }
    let mut shim = several.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    for ca in several.cas() {
        within(&shim, "three calls", ca.wait_for_outcomes(3)).await?;
    }
    let mark = shim.log().mark();
    renew(&shim)?;
    failed(&shim, mark, 1).await?;
    let mut calls: Vec<_> =
        several.cas().enumerate().flat_map(|(ca, c)| c.calls().into_iter().map(move |c| (c.at, ca))).collect();
    calls.sort();
    let order: Vec<_> = calls.iter().map(|(_, ca)| *ca).collect();
    assert!(order.iter().enumerate().all(|(call, ca)| *ca == call % 3), "in their order: {order:?}");
    let csrs: std::collections::BTreeSet<_> =
        several.cas().flat_map(DevelopmentCa::calls).map(|call| call.csr).collect();
    assert_eq!(csrs.len(), 1, "the same CSR to all of them");
    let lines = shim.log().lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("cannot obtain a certificate: ")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    for (ca, words) in several.cas().zip(["one", "two", "three"]) {
        let cause = format!("localhost:{}: the CA answered UNAVAILABLE: {words}", ca.address().port());
        assert!(told[0].contains(&cause), "{cause} in {}", told[0]);
    }
    several.others[1].set_fault(None);
    stream.next(&shim).await?;
    assert_eq!(shim.log().count(ELSEWHERE), 1);
    Ok(())
}

#[tokio::test]
async fn a_ca_with_an_invalid_answer_is_passed_over() -> testkit::Result {
    let several = Several::alike(2).await?;
    several.scene.ca.set_fault(Some(Fault::sign(|o| o.other_key = true)));
    let mut shim = several.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    assert_eq!(several.asked(), [1, 1]);
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(several.asked(), [1, 2]);
    assert_eq!(shim.log().count("does not match our CSR; another address has answered"), 1);
    Ok(())
}

#[tokio::test]
async fn an_address_that_asked_for_patience_is_left_alone_while_others_are_tried() -> testkit::Result {
    let several = Several::alike(2).await?;
    several.scene.ca.set_fault(down("away"));
    several.others[0].set_fault(Some(Fault::later(Code::ResourceExhausted, 600)));
    let mut shim = several.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    within(&shim, "four calls", several.scene.ca.wait_for_outcomes(4)).await?;
    assert_eq!(several.asked()[1], 1, "asked once, and then left alone");
    // An operator may know better.
    several.others[0].set_fault(None);
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(several.asked()[1], 2);
    Ok(())
}

/// Only half of the certificate's life that is left may be asked for, but 30 s, also where there is another address,
/// which is dead.
#[tokio::test]
async fn an_hour_of_patience_does_not_outlast_the_certificate() -> testkit::Result {
    const LIFE: Duration = Duration::from_secs(55);
    let scene = Site::with(CaOptions { max_ttl: LIFE, ..CaOptions::default() }).await?;
    let dead = vec![Arc::clone(&scene.pki)];
    let several = Several::with(scene, dead).await?;
    let first = &several.scene.ca;
    several.others[0].set_fault(down("away"));
    let mut shim = several.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    let held = Instant::now();
    first.push_fault(Fault::later(Code::ResourceExhausted, 3600));
    renew(&shim)?;
    let asked_again = tokio::time::timeout(LIFE, first.wait_for_outcomes(3)).await;
    asked_again.map_err(|_| shim.failure("it is not asked again while the certificate lives"))?;
    stream.next(&shim).await?;
    assert!(held.elapsed() >= Duration::from_secs(29), "it is left alone as far as that can be borne");
    assert!(held.elapsed() < LIFE);
    Ok(())
}

/// What happens to the new roots that come before the certificate which needs them.
enum Verdict {
    Accepted,
    Refused,
    Ignored,
}

/// A CA with another root takes over: its root is pushed before its leaf, which waits for the `verdict` on the root.
async fn another_root(verdict: Verdict) -> Result<Duration, Failure> {
    let scene = Site::new().await?;
    let other = Arc::new(Pki::new("other"));
    let several = Several::with(scene, vec![Arc::clone(&other)]).await?;
    let mut shim = several.start()?;
    let client = shim.connect().await?;
    let mut default = Open::new(&client, "default");
    let mut roots: SdsStream = client.stream();
    roots.send(sds::request(&["ROOTCA"]));
    let old = default.next(&shim).await?;
    let answer = roots.recv().await?;
    roots.send(sds::ack(&answer, &["ROOTCA"]));
    let version = answer.version_info;

    several.scene.ca.set_fault(down("away"));
    renew(&shim)?;
    let answer = roots.recv().await.map_err(|failure| shim.explain(failure))?;
    let pushed = Instant::now();
    let anchors = sds::secrets(&answer)?.remove(0).trusted_ca_pem;
    assert_eq!(anchors, other.root_pem() + &several.scene.pki.root_pem(), "the new one, and the old one is kept");
    default.expect_silence(&shim).await?;
    let meanwhile = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(meanwhile.key_pem, old.key_pem, "a new stream gets the old one meanwhile");
    match verdict {
        Verdict::Accepted => roots.send(sds::ack(&answer, &["ROOTCA"])),
        Verdict::Refused => roots.send(sds::nack(&answer, &version, &["ROOTCA"], "no")),
        Verdict::Ignored => {}
    }
    let new = default.next(&shim).await?;
    let waited = pushed.elapsed();
    assert!(new.chain_pem.ends_with(&other.intermediate_pem()), "of the other CA");
    Ok(waited)
}

#[tokio::test]
async fn a_new_root_is_taken_before_its_leaf_is_served() -> testkit::Result {
    let waited = another_root(Verdict::Accepted).await?;
    assert!(waited < Duration::from_secs(4), "{waited:?} though it was accepted");
    Ok(())
}

#[tokio::test]
async fn a_refused_root_does_not_hold_the_certificate_back() -> testkit::Result {
    let waited = another_root(Verdict::Refused).await?;
    assert!(waited < Duration::from_secs(4), "{waited:?} though it was answered");
    Ok(())
}

#[tokio::test]
async fn an_unacknowledged_root_delays_the_certificate_by_five_seconds() -> testkit::Result {
    let waited = another_root(Verdict::Ignored).await?;
    assert!(waited >= Duration::from_millis(4500), "{waited:?} without an answer");
    Ok(())
}
