//! The CA's answers at renewal, while a good certificate is held: bad ones push nothing and leave the old one to all
//! who ask; unusual ones that are good are published in one canonical form.

use std::{collections::BTreeSet, sync::Arc};

use openssl::x509::X509;
use testkit::{
    Failure,
    development_ca::{Fault, Leaf, Lifetime, Pki, PkiOptions, SignOverrides},
    fixture::{Open, Site, attempts::failed, issued_serial, renew, within},
    sds::Secret,
    shim::Shim,
};

/// How often each bad answer is given.
const ATTEMPTS: usize = 3;
/// A shim that holds a certificate, with both of its streams open.
struct Holding {
    scene: Site,
    shim: Shim,
    default: Open,
    roots: Open,
    held: Secret,
    served_roots: String,
}

impl Holding {
    async fn new() -> Result<Self, Failure> {
        let scene = Site::new().await?;
        let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
        let client = shim.connect().await?;
        let (mut default, mut roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        let held = default.next(&shim).await?;
        let served_roots = roots.next(&shim).await?.trusted_ca_pem;
        Ok(Self { scene, shim, default, roots, held, served_roots })
    }

    /// The answer under `fault` is not used for `reason`, however often it comes, and the right one after it is.
    async fn refuses(&mut self, fault: Fault, reason: &str) -> testkit::Result {
        let (mark, calls) = (self.shim.log().mark(), self.scene.ca.calls().len());
        self.scene.ca.set_fault(Some(fault));
        for attempt in 1..=ATTEMPTS {
            let before = self.shim.log().mark();
            renew(&self.shim)?;
            failed(&self.shim, before, 1).await?;
            let made = self.scene.ca.calls().len() - calls;
            // It may have tried again by itself already.
            assert!(made >= attempt, "{made} calls in attempt {attempt}");
        }
        let mut fresh = Open::connect(&mut self.shim, "default").await?;
        assert_eq!(fresh.next(&self.shim).await?.key_pem, self.held.key_pem, "a new stream gets the old one");
        let mut fresh = Open::connect(&mut self.shim, "ROOTCA").await?;
        assert_eq!(fresh.next(&self.shim).await?.trusted_ca_pem, self.served_roots);
        self.default.expect_silence(&self.shim).await?;
        self.roots.expect_silence(&self.shim).await?;
        self.scene.ca.set_fault(None);
        self.renewed().await?;
        let told = self.shim.log().lines().split_off(mark);
        let told: Vec<_> = told.iter().filter(|line| line.contains("renewal failed: ")).collect();
        let line = match &told[..] {
            [line] if line.contains(reason) && line.contains("still serving the current certificate") => *line,
            _ => return Err(self.shim.failure(format!("not once {reason:?}: {told:?}"))),
        };
        assert!(line.contains("the CA's answer was rejected: ") || reason == "too large", "{line}");
        let renewal: BTreeSet<_> = self.scene.ca.calls().split_off(calls).into_iter().map(|call| call.csr).collect();
        assert_eq!(renewal.len(), 1, "the same CSR over the retries of one renewal");
        self.roots.expect_silence(&self.shim).await
    }

    /// The next answer is pushed on the open stream.
    async fn renewed(&mut self) -> testkit::Result {
        renew(&self.shim)?;
        let next = self.default.next(&self.shim).await?;
        let issued = self.scene.issued();
        assert_eq!(issued.last(), Some(&next.serial()?), "the last certificate of {issued:?}");
        assert!(next.key_fits_leaf()? && next.key_pem != self.held.key_pem);
        self.held = next;
        Ok(())
    }

    /// What the CA answers under `edit` is published at once, as the leaf and `after` it.
    async fn takes(
        &mut self,
        edit: impl Fn(Vec<String>) -> Vec<String> + Send + Sync + 'static,
        after: &str,
    ) -> testkit::Result {
        let calls = self.scene.ca.calls().len();
        self.scene.ca.set_fault(Some(Fault::mutate(edit)));
        self.renewed().await?;
        self.scene.ca.set_fault(None);
        assert_eq!(self.scene.ca.calls().len(), calls + 1);
        // OpenSSL's own form: 64 columns, and one newline after each line.
        let leaf = canonical(&self.held.chain_pem);
        assert_eq!(self.held.chain_pem, leaf + after);
        Ok(())
    }
}

/// The first certificate of a PEM text as OpenSSL writes it.
fn canonical(pem: &str) -> String {
    let certificate = X509::from_pem(pem.as_bytes()).expect("a certificate");
    String::from_utf8(certificate.to_pem().expect("PEM")).expect("ASCII")
}

/// The same certificate with its base64 in lines of so many columns.
fn in_columns(pem: &str, columns: usize) -> String {
    let (head, rest) = pem.split_at("-----BEGIN CERTIFICATE-----\n".len());
    let (body, foot) = rest.split_at(rest.find("-----END").expect("an end"));
    let base64: Vec<_> = body.bytes().filter(|byte| *byte != b'\n').collect();
    let lines = base64.chunks(columns).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    lines.fold(head.to_owned(), |text, line| text + &line) + foot
}

/// What `pki` would have answered for the same key, whatever `leaf` says of it.
fn instead(pki: Pki, leaf: impl Fn(&mut Leaf) + Send + Sync + 'static) -> Fault {
    Fault::mutate(move |chain| {
        let key = X509::from_pem(chain[0].as_bytes()).and_then(|leaf| leaf.public_key()?.public_key_to_pem());
        let key = String::from_utf8(key.expect("the leaf's key")).expect("ASCII");
        let mut content = Leaf::workload("spiffe://cluster.local/ns/foo/sa/sleep", std::time::Duration::from_secs(600));
        leaf(&mut content);
        vec![pki.certify(&content, &key).expect("a certificate"), pki.intermediate_pem(), pki.root_pem()]
    })
}

fn past() -> Lifetime {
    Lifetime { not_before: -86_400, not_after: -3600 }
}

fn uri(uris: &[&str]) -> Fault {
    let uris: Vec<_> = uris.iter().map(|uri| (*uri).to_owned()).collect();
    Fault::sign(move |o| o.leaf.uri.clone_from(&uris))
}

fn replaced(index: usize, by: impl Into<String>) -> Fault {
    let by = by.into();
    Fault::mutate(move |mut chain| {
        chain[index].clone_from(&by);
        chain
    })
}

/// The leaf with the last byte of its signature changed.
fn forged(mut chain: Vec<String>) -> Vec<String> {
    let mut der = X509::from_pem(chain[0].as_bytes()).and_then(|leaf| leaf.to_der()).expect("a leaf");
    *der.last_mut().expect("a signature") ^= 1;
    let forged = X509::from_der(&der).and_then(|leaf| leaf.to_pem()).expect("a certificate");
    chain[0] = String::from_utf8(forged).expect("ASCII");
    chain
}

fn truncated(mut chain: Vec<String>) -> Vec<String> {
    let half = chain[0].len() / 2;
    chain[0].truncate(half);
    chain
}

const NO_WAY_UP: &str = "the chain does not lead to a root in the answer";
const FOREIGN_KEY: &str = "the leaf's public key does not match our CSR";
const FOREIGN_ID: &str = "our SPIFFE ID is spiffe://cluster.local/ns/foo/sa/sleep";
const TIME: &str = "a certificate is valid from";
const NOT_USED: &str = "the CA's answer was rejected";

/// Every answer that must not be used, and the words that name why.
fn bad_answers() -> Vec<(&'static str, Fault, &'static str)> {
    let sign = |edit: fn(&mut SignOverrides)| Fault::sign(edit);
    let mutate = |edit: fn(Vec<String>) -> Vec<String>| Fault::mutate(edit);
    let other = Arc::new(Pki::new("other"));
    let twin = Arc::new(Pki::new("test"));
    let server = Pki::new("server").issue(&Leaf::server(&["a"])).chain_pem;
    let server_leaf = canonical(&server);
    let expired_root = Pki::with_options(&PkiOptions { root: past(), ..PkiOptions::new("old") });
    let expired_intermediate = Pki::with_options(&PkiOptions { intermediate: past(), ..PkiOptions::new("worn") });
    let future = Lifetime { not_before: 3600, not_after: 86_400 };
    let coming_intermediate = Pki::with_options(&PkiOptions { intermediate: future, ..PkiOptions::new("early") });
    let sleep = "spiffe://cluster.local/ns/foo/sa/sleep";
    vec![
        ("another key", sign(|o| o.other_key = true), FOREIGN_KEY),
        ("another identity", uri(&["spiffe://cluster.local/ns/foo/sa/other"]), FOREIGN_ID),
        ("two identities", uri(&[sleep, "spiffe://cluster.local/ns/foo/sa/other"]), FOREIGN_ID),
        ("the same identity twice", uri(&[sleep, sleep]), FOREIGN_ID),
        ("another trust domain", uri(&["spiffe://example.org/ns/foo/sa/sleep"]), FOREIGN_ID),
        ("an upper-case trust domain", uri(&["spiffe://CLUSTER.LOCAL/ns/foo/sa/sleep"]), FOREIGN_ID),
        ("an upper-case scheme", uri(&["SPIFFE://cluster.local/ns/foo/sa/sleep"]), FOREIGN_ID),
        ("a longer path", uri(&["spiffe://cluster.local/ns/foo/sa/sleep/"]), FOREIGN_ID),
        (
            "a DNS name only",
            sign(|o| (o.leaf.uri, o.leaf.dns) = (Vec::new(), vec!["sleep.foo.svc".to_owned()])),
            "the leaf's URI SAN is []",
        ),
        ("no name at all", sign(|o| o.leaf.uri.clear()), "the leaf's URI SAN is []"),
        ("expired", sign(|o| (o.leaf.not_before, o.leaf.not_after) = (-7200, -1)), TIME),
        ("an hour in the future", sign(|o| (o.leaf.not_before, o.leaf.not_after) = (3600, 7200)), TIME),
        ("over before it begins", sign(|o| (o.leaf.not_before, o.leaf.not_after) = (50, 40)), NOT_USED),
        ("a CA certificate", sign(|o| o.leaf.ca = true), "the leaf is a CA certificate"),
        ("for servers only", sign(|o| o.leaf.client_auth = false), "extended key usage lacks clientAuth"),
        ("for clients only", sign(|o| o.leaf.server_auth = false), "extended key usage lacks serverAuth"),
        (
            "not for signing",
            sign(|o| o.leaf.key_encipherment_only = true),
            "the leaf's key usage lacks digitalSignature",
        ),
        (
            "a foreign CA",
            Fault::sign({
                let other = other.clone();
                move |o| o.signed_by = Some(other.clone())
            }),
            NO_WAY_UP,
        ),
        ("a foreign CA of the same name", Fault::sign(move |o| o.signed_by = Some(twin.clone())), NO_WAY_UP),
        ("a wrong signature", mutate(forged), NO_WAY_UP),
        ("no intermediate", mutate(|chain| vec![chain[0].clone(), chain[2].clone()]), NO_WAY_UP),
        ("a foreign intermediate", replaced(1, other.intermediate_pem()), NO_WAY_UP),
        ("an unrelated root", replaced(2, other.root_pem()), NO_WAY_UP),
        ("the leaf last", mutate(|chain| chain.into_iter().rev().collect()), FOREIGN_KEY),
        (
            "the intermediate first",
            mutate(|chain| vec![chain[1].clone(), chain[0].clone(), chain[2].clone()]),
            FOREIGN_KEY,
        ),
        ("an empty list", Fault::Chain(Vec::new()), "the CA returned 0 element(s)"),
        ("one element", mutate(|chain| chain[..1].to_vec()), "the CA returned 1 element(s)"),
        ("everything in one element", mutate(|chain| vec![chain.concat()]), "the CA returned 1 element(s)"),
        ("empty elements", Fault::Chain(vec![String::new(); 3]), "element 1 of the CA's answer: it holds no PEM"),
        ("garbage for the leaf", replaced(0, "garbage"), "element 1 of the CA's answer: it holds no PEM certificate"),
        ("garbage for the intermediate", replaced(1, "-----BEGIN"), "element 2 of the CA's answer: it holds no PEM"),
        ("garbage for the root", replaced(2, "\0\u{1f510}"), "element 3 of the CA's answer: it holds no PEM"),
        ("half a leaf", mutate(truncated), "element 1 of the CA's answer: certificate 1 in it cannot be parsed"),
        ("a megabyte", Fault::Chain(vec!["x".repeat(1 << 20); 2]), "too large"),
        ("no CA for a root", replaced(2, server_leaf), "element 3 of the CA's answer: certificate 1 in it is not a CA"),
        (
            "an expired root",
            instead(expired_root, |_| {}),
            "element 3 of the CA's answer: certificate 1 in it expired at",
        ),
        ("an expired intermediate", instead(expired_intermediate, |_| {}), TIME),
        ("an intermediate of tomorrow", instead(coming_intermediate, |_| {}), TIME),
    ]
}

#[tokio::test]
async fn bad_answers_leave_the_old_certificate_and_are_named_once() -> testkit::Result {
    let mut holding = Holding::new().await?;
    let answers = bad_answers();
    assert!(answers.len() >= 25);
    for (name, fault, reason) in answers {
        holding.refuses(fault, reason).await.map_err(|failure| failure.context(name))?;
    }
    assert_eq!(holding.shim.log().count("among the CA's roots"), 0);
    Ok(())
}

#[tokio::test]
async fn unusual_answers_that_are_good_are_published_in_one_form() -> testkit::Result {
    let mut holding = Holding::new().await?;
    let (intermediate, root) = (holding.scene.pki.intermediate_pem(), holding.scene.pki.root_pem());
    let other = Pki::new("other").intermediate_pem();
    let worn = Pki::with_options(&PkiOptions { intermediate: past(), ..PkiOptions::new("worn") }).intermediate_pem();
    fn list(chain: &[&String]) -> Vec<String> {
        chain.iter().map(|element| (*element).clone()).collect()
    }
    let whole = intermediate.clone();

    holding.takes(move |c| list(&[&c[0], &c[1], &c[0], &c[1], &c[2]]), &whole).await?;
    holding.takes(|c| c.iter().map(|element| element.trim_end().to_owned()).collect(), &whole).await?;
    holding.takes(|c| c.iter().map(|element| element.replace('\n', "\r\n")).collect(), &whole).await?;
    holding.takes(|c| c.iter().map(|element| format!("subject: x\n{element}\n\n\n")).collect(), &whole).await?;
    holding.takes(|c| vec![c[0].trim_end().to_owned() + &c[1], c[2].clone()], &whole).await?;
    for columns in [48, 76, 4096] {
        holding.takes(move |c| c.iter().map(|element| in_columns(element, columns)).collect(), &whole).await?;
    }
    holding.takes(move |c| vec![c[0].clone(), root.clone(), c[1].clone(), c[2].clone()], &whole).await?;
    // What is not on the way to the root may help a peer that trusts another one: it comes last.
    let last = whole.clone() + &other;
    holding.takes(move |c| vec![c[0].clone(), other.clone(), c[1].clone(), c[2].clone()], &last).await?;
    holding.takes(move |c| vec![c[0].clone(), worn.clone(), c[1].clone(), c[2].clone()], &whole).await?;
    holding.roots.expect_silence(&holding.shim).await?;
    // Whatever the CA calls a root is one, as for Envoy: the chain ends before it.
    holding.takes(|c| list(&[&c[0], &c[1]]), "").await?;
    assert_eq!(holding.roots.next(&holding.shim).await?.trusted_ca_pem, whole + &holding.served_roots);
    assert_eq!(holding.shim.log().count("renewal failed"), 0);
    Ok(())
}

#[tokio::test]
async fn bad_anchors_among_good_ones_are_left_out_with_one_warning_each() -> testkit::Result {
    let mut holding = Holding::new().await?;
    let expired = Pki::with_options(&PkiOptions { root: past(), ..PkiOptions::new("old") }).root_pem();
    let leaf = Pki::new("server").issue(&Leaf::server(&["a"])).chain_pem;
    let broken = expired.replacen("MII", "AII", 1);
    let (root, intermediate) = (holding.scene.pki.root_pem(), holding.scene.pki.intermediate_pem());
    let next = Pki::new("next").root_pem();
    let bundle = expired + &canonical(&leaf) + &broken + &root + "rubbish\n" + next.trim_end() + &root + &next;
    let edit = move |c: Vec<String>| vec![c[0].clone(), c[1].clone(), bundle.clone()];
    holding.takes(edit.clone(), &intermediate).await?;
    assert_eq!(holding.roots.next(&holding.shim).await?.trusted_ca_pem, root + &next, "each once, in their order");
    holding.takes(edit, &intermediate).await?;
    holding.roots.expect_silence(&holding.shim).await?;
    let told = "among the CA's roots, certificate";
    for reason in ["1 skipped: it expired at", "2 skipped: it is not a CA", "3 skipped: it cannot be parsed"] {
        assert_eq!(holding.shim.log().count(&format!("{told} {reason}")), 1, "{reason}");
    }
    assert_eq!(holding.shim.log().count(told), 3);
    Ok(())
}

/// The certificate that is renewed while bad answers come is the one that Envoy holds: nothing of a refused answer is
/// ever seen by anybody, also not for a moment.
#[tokio::test]
async fn the_number_of_answers_pushed_is_the_number_of_good_ones() -> testkit::Result {
    let mut holding = Holding::new().await?;
    for round in 0..3 {
        holding.scene.ca.push_fault(Fault::sign(|o| o.other_key = true));
        holding.scene.ca.push_fault(Fault::Chain(Vec::new()));
        let before = holding.scene.ca.calls().len();
        renew(&holding.shim)?;
        // The third answer is good; nothing asks for it but the back-off.
        let next = holding.default.next(&holding.shim).await?;
        within(&holding.shim, "three answers", holding.scene.ca.wait_for_outcomes(before + 3)).await?;
        let calls = holding.scene.ca.calls();
        assert_eq!(calls.len(), before + 3, "round {round}");
        assert_eq!(calls.last().and_then(issued_serial), Some(next.serial()?));
    }
    holding.default.expect_silence(&holding.shim).await
}
