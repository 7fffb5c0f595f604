//! Answers that must not be used: nothing of them is published, the reason is told once, and a right answer follows.

use std::sync::Arc;

use testkit::development_ca::{CaOptions, Fault, Issued, Leaf, Lifetime, Pki, PkiOptions, SignOverrides};
use testkit::{
    Failure, OrFail,
    fixture::{Open, Site, token, within, write},
    shim::Shim,
};

/// The workload gets nothing of what the CA answers under `fault`, of which `reason` is told once; and the first
/// secret that it gets is the right one that follows.
async fn is_not_used(fault: impl FnOnce(&Site) -> Fault, reason: &str) -> testkit::Result {
    let scene = Site::new().await?;
    let fault = fault(&scene);
    outlives(&scene, fault, reason).await
}

async fn outlives(scene: &Site, fault: Fault, reason: &str) -> testkit::Result {
    scene.ca.set_fault(Some(fault));
    let mut shim = scene.shim().start()?;
    let client = shim.connect().await?;
    let (mut default, mut root) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    shim.wait_for_log(reason).await?;
    within(&shim, "two answered calls", scene.ca.wait_for_outcomes(2)).await?;
    default.expect_silence(&shim).await?;
    root.expect_silence(&shim).await?;
    // From here on the CA answers right, but not before the answers so far are counted.
    scene.ca.set_fault(None);
    let bad = scene.ca.calls().len();
    let secret = default.next(&shim).await?;
    let calls = scene.ca.calls();
    let served = calls.iter().position(|call| testkit::fixture::issued_serial(call) == secret.serial().ok());
    assert_eq!(served, Some(calls.len() - 1), "the served certificate is the last one");
    assert!(calls.len() > bad);
    assert!(secret.key_fits_leaf()?);
    assert_eq!(secret.spiffe_ids()?, [scene.workload.spiffe_id()]);
    assert_eq!(root.next(&shim).await?.trusted_ca_pem, scene.pki.root_pem());
    assert_eq!(shim.log().count(reason), 1, "told once");
    // Envoy has it before it is logged.
    shim.wait_for_log("certificate issued").await?;
    assert_eq!(shim.log().count("certificate issued"), 1);
    Ok(())
}

async fn signed(edit: impl Fn(&mut SignOverrides) + Send + Sync + 'static, reason: &str) -> testkit::Result {
    is_not_used(|_| Fault::sign(edit), reason).await
}

async fn mutated(edit: impl Fn(Vec<String>) -> Vec<String> + Send + Sync + 'static, reason: &str) -> testkit::Result {
    is_not_used(|_| Fault::mutate(edit), reason).await
}

#[tokio::test]
async fn an_empty_chain() -> testkit::Result {
    is_not_used(|_| Fault::Chain(Vec::new()), "the CA returned 0 element(s)").await
}

#[tokio::test]
async fn one_element() -> testkit::Result {
    mutated(|chain| chain[..1].to_vec(), "the CA returned 1 element(s)").await
}

#[tokio::test]
async fn one_element_with_everything_in_it() -> testkit::Result {
    mutated(|chain| vec![chain.concat()], "the CA returned 1 element(s)").await
}

#[tokio::test]
async fn garbage_for_a_leaf() -> testkit::Result {
    let garbage = |mut chain: Vec<String>| {
        chain[0] = "no certificate at all".to_owned();
        chain
    };
    mutated(garbage, "element 1 of the CA's answer: it holds no PEM certificate").await
}

#[tokio::test]
async fn a_broken_leaf() -> testkit::Result {
    let broken = |mut chain: Vec<String>| {
        chain[0] = chain[0].replacen("MII", "AII", 1);
        chain
    };
    mutated(broken, "element 1 of the CA's answer: certificate 1 in it cannot be parsed").await
}

#[tokio::test]
async fn garbage_for_a_root() -> testkit::Result {
    let garbage = |mut chain: Vec<String>| {
        chain[2] = String::new();
        chain
    };
    mutated(garbage, "element 3 of the CA's answer: it holds no PEM certificate").await
}

#[tokio::test]
async fn a_certificate_for_another_key() -> testkit::Result {
    signed(|o| o.other_key = true, "the leaf's public key does not match our CSR").await
}

#[tokio::test]
async fn a_certificate_for_another_identity() -> testkit::Result {
    let other = "spiffe://cluster.local/ns/foo/sa/other";
    signed(move |o| o.leaf.uri = vec![other.to_owned()], "URI SAN is [\"spiffe://cluster.local/ns/foo/sa/other\"]")
        .await
}

#[tokio::test]
async fn a_certificate_for_two_identities() -> testkit::Result {
    let other = "spiffe://cluster.local/ns/foo/sa/other";
    signed(move |o| o.leaf.uri.push(other.to_owned()), "our SPIFFE ID is spiffe://cluster.local/ns/foo/sa/sleep").await
}

#[tokio::test]
async fn a_certificate_without_an_identity() -> testkit::Result {
    let nameless = |o: &mut SignOverrides| {
        o.leaf.uri.clear();
        o.leaf.dns = vec!["sleep.foo.svc".to_owned()];
    };
    signed(nameless, "the leaf's URI SAN is []").await
}

#[tokio::test]
async fn an_expired_certificate() -> testkit::Result {
    signed(|o| (o.leaf.not_before, o.leaf.not_after) = (-7200, -3600), "a certificate is valid from").await
}

#[tokio::test]
async fn a_certificate_from_the_future() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    scene.ca.set_fault(Some(Fault::sign(|o| (o.leaf.not_before, o.leaf.not_after) = (3600, 7200))));
    testkit::fixture::renew(&shim)?;
    shim.wait_for_log("a certificate is valid from").await?;
    within(&shim, "three answered calls", scene.ca.wait_for_outcomes(3)).await?;
    stream.expect_silence(&shim).await?;
    // A new stream gets the old one meanwhile.
    let served = Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?;
    assert_eq!(served, scene.issued()[0]);
    Ok(())
}

/// Better than none: whose clock is wrong cannot be known, and the peers may see it as we do.
#[tokio::test]
async fn a_not_yet_valid_certificate_is_used_if_it_is_the_only_one() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::sign(|o| (o.leaf.not_before, o.leaf.not_after) = (3600, 7200))));
    let mut shim = scene.shim().start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(secret.serial()?, scene.issued()[0]);
    let line = shim.wait_for_log("the certificate is not yet valid").await?;
    assert!(line.contains("not_before=") && line.contains("now="), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_begins_in_a_moment_is_held_until_then() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    scene.ca.set_fault(Some(Fault::sign(|o| o.leaf.not_before = 3)));
    testkit::fixture::renew(&shim)?;
    shim.wait_for_log("holding back the certificate until it becomes valid").await?;
    let held_back = Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?;
    assert_eq!(held_back, scene.issued()[0], "still serving the current certificate");
    let secret = stream.next(&shim).await?;
    assert_eq!(secret.serial()?, scene.issued()[1]);
    let now = openssl::asn1::Asn1Time::days_from_now(0).or_fail("the time")?;
    let leaf = secret.leaf()?;
    assert!(leaf.not_before() <= now.as_ref(), "it was pushed before its time: {} {}", leaf.not_before(), now.as_ref());
    Ok(())
}

#[tokio::test]
async fn a_ca_certificate() -> testkit::Result {
    signed(|o| o.leaf.ca = true, "the leaf is a CA certificate").await
}

#[tokio::test]
async fn a_certificate_without_extended_key_usage() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::sign(|o| (o.leaf.server_auth, o.leaf.client_auth) = (false, false))));
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    shim.wait_for_log("has no extended key usage").await?;
    assert_eq!(shim.log().count("has no extended key usage"), 1, "said once a certificate");
    Ok(())
}

#[tokio::test]
async fn a_certificate_for_servers_only() -> testkit::Result {
    signed(|o| o.leaf.client_auth = false, "extended key usage lacks clientAuth").await
}

#[tokio::test]
async fn a_certificate_for_clients_only() -> testkit::Result {
    signed(|o| o.leaf.server_auth = false, "extended key usage lacks serverAuth").await
}

#[tokio::test]
async fn a_certificate_of_a_foreign_ca() -> testkit::Result {
    let other = Arc::new(Pki::new("other"));
    signed(move |o| o.signed_by = Some(Arc::clone(&other)), "the chain does not lead to a root in the answer").await
}

#[tokio::test]
async fn a_forged_intermediate_of_the_same_name() -> testkit::Result {
    // The same names all the way up, so that only the signatures tell the two apart.
    let twin = Arc::new(Pki::new("test"));
    signed(move |o| o.signed_by = Some(Arc::clone(&twin)), "the chain does not lead to a root in the answer").await
}

#[tokio::test]
async fn a_chain_without_its_intermediate() -> testkit::Result {
    let shorter = |mut chain: Vec<String>| {
        chain.remove(1);
        chain
    };
    mutated(shorter, "the chain does not lead to a root in the answer").await
}

#[tokio::test]
async fn an_unrelated_root() -> testkit::Result {
    let other = Pki::new("other").root_pem();
    let unrelated = move |mut chain: Vec<String>| {
        chain[2].clone_from(&other);
        chain
    };
    mutated(unrelated, "the chain does not lead to a root in the answer").await
}

#[tokio::test]
async fn the_leaf_in_the_last_place() -> testkit::Result {
    let backwards = |mut chain: Vec<String>| {
        chain.reverse();
        chain
    };
    mutated(backwards, "the leaf's public key does not match our CSR").await
}

#[tokio::test]
async fn the_chain_of_somebody_else() -> testkit::Result {
    let theirs = |scene: &Site| {
        let Issued { chain_pem, .. } = scene.issue(&scene.workload.spiffe_id());
        Fault::Chain(vec![chain_pem, scene.pki.root_pem()])
    };
    is_not_used(theirs, "the leaf's public key does not match our CSR").await
}

#[tokio::test]
async fn a_megabyte() -> testkit::Result {
    is_not_used(|_| Fault::Chain(vec!["x".repeat(1 << 20); 2]), "too large").await
}

#[tokio::test]
async fn a_great_many_elements() -> testkit::Result {
    // Two bytes each on the wire and many more in memory: refused before they are stored.
    is_not_used(|_| Fault::Chain(vec![String::new(); 30_000]), "the message has more than 512 fields").await
}

#[tokio::test]
async fn an_expired_intermediate() -> testkit::Result {
    let past = Lifetime { not_before: -86_400, not_after: -3600 };
    let pki = Pki::with_options(&PkiOptions { intermediate: past, ..PkiOptions::new("test") });
    // The server itself has a certificate of another PKI, so that the connection can be made at all.
    let options = CaOptions { server_pki: Some(Arc::new(Pki::new("server"))), ..CaOptions::default() };
    let mut scene = Site::with_pki(Arc::new(pki), options).await?;
    scene.write_token(&token())?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("a certificate is valid from").await?;
    within(&shim, "two answered calls", scene.ca.wait_for_outcomes(2)).await?;
    stream.expect_silence(&shim).await
}

/// Peers verify the whole path: a leaf of 24 h under a root that ends in a minute is over in a minute.
#[tokio::test]
async fn a_leaf_that_outlives_its_root_is_renewed_in_time() -> testkit::Result {
    let scene = under_a_root_that_ends().await?;
    let shim = scene.shim().start()?;
    assert!(renewal_in(&shim, "certificate issued").await? < LEFT);
    Ok(())
}

/// The root is renewed under its name and key: of two paths the one counts that lasts longer, whoever brings the root.
#[tokio::test]
async fn a_leaf_lasts_as_long_as_its_last_path() -> testkit::Result {
    let lasting = Lifetime { not_before: -60, not_after: 86_400 };
    let scene = under_a_root_that_ends().await?;
    scene.ca.set_extra_roots(vec![scene.pki.renewed_root(lasting)]);
    let shim = scene.shim().start()?;
    assert!(renewal_in(&shim, "certificate issued").await? > LEFT, "the CA answers both");

    let scene = under_a_root_that_ends().await?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &Pki::new("other").root_pem())?;
    let mut shim = scene.shim().env("SDS_SHIM_EXTRA_ROOTS", "./extra.pem").start()?;
    assert!(renewal_in(&shim, "certificate issued").await? < LEFT);
    let next = next_attempt(&mut shim).await?;
    write(&extra, &scene.pki.renewed_root(lasting))?;
    assert!(
        renewal_in(&shim, "the trust anchors changed, and with them the time at which the certificate expires").await?
            > LEFT,
        "a file brings it"
    );
    assert!(next_attempt(&mut shim).await? > next + LEFT as f64);
    assert_eq!(scene.ca.calls().len(), 1);
    Ok(())
}

/// Seconds until the end of the root of [`under_a_root_that_ends`].
const LEFT: i64 = 60;

async fn under_a_root_that_ends() -> Result<Site, Failure> {
    let root = Lifetime { not_before: -86_400, not_after: LEFT };
    let pki = Pki::with_options(&PkiOptions { root, ..PkiOptions::new("test") });
    let options = CaOptions { server_pki: Some(Arc::new(Pki::new("server"))), ..CaOptions::default() };
    let mut scene = Site::with_pki(Arc::new(pki), options).await?;
    scene.write_token(&token())?;
    Ok(scene)
}

/// Seconds to the renewal that a line of the log announces.
async fn renewal_in(shim: &Shim, line: &str) -> Result<i64, Failure> {
    let line = shim.wait_for_log(line).await?;
    let wait = line.split("renewal_in_s=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    wait.ok_or_else(|| shim.failure(format!("{line} tells no time")))
}

async fn next_attempt(shim: &mut Shim) -> Result<f64, Failure> {
    let metrics = shim.admin("/metrics").await?.text();
    let line = metrics.lines().find(|line| line.starts_with("sds_shim_renewal_next_attempt_timestamp_seconds{"));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.ok_or_else(|| shim.failure("no metric tells it"))
}

#[tokio::test]
async fn several_roots_in_the_last_element_are_all_served() -> testkit::Result {
    let scene = Site::new().await?;
    let (next, last) = (Pki::new("next").root_pem(), Pki::new("last").root_pem());
    // A root that comes twice, and one that does not end in a newline, as bundles in the field have them.
    let roots = vec![next.clone(), scene.pki.root_pem().trim_end().to_owned(), last.clone()];
    scene.ca.set_extra_roots(roots);
    let mut shim = scene.shim().start()?;
    let client = shim.connect().await?;
    assert_eq!(Open::new(&client, "default").next(&shim).await?.chain()?.len(), 2, "leaf and intermediate, no root");
    let served = Open::new(&client, "ROOTCA").next(&shim).await?.trusted_ca_pem;
    assert_eq!(served, scene.pki.root_pem() + &next + &last);
    Ok(())
}

#[tokio::test]
async fn a_chain_of_leaf_and_root_alone_is_used() -> testkit::Result {
    let scene = Site::new().await?;
    // Intermediates in the leaf's own element: not Citadel's order, but nothing is wrong with it.
    scene.ca.set_fault(Some(Fault::mutate(|chain| vec![chain[..2].concat(), chain[2].clone()])));
    let mut shim = scene.shim().start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(secret.chain()?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_further_dns_name_does_no_harm() -> testkit::Result {
    let scene = Site::new().await?;
    let leaf = |o: &mut SignOverrides| o.leaf.dns = vec!["sleep.foo.svc".to_owned()];
    scene.ca.set_fault(Some(Fault::sign(leaf)));
    let mut shim = scene.shim().start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(secret.spiffe_ids()?, [scene.workload.spiffe_id()]);
    Ok(())
}

#[tokio::test]
async fn a_shorter_lifetime_than_asked_is_followed() -> testkit::Result {
    let leaf = Leaf::workload("spiffe://cluster.local/ns/foo/sa/sleep", std::time::Duration::from_secs(600));
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::sign(move |o| o.leaf.not_after = leaf.not_after)));
    let shim = scene.shim().env("SECRET_TTL", "24h").start()?;
    let line = shim.wait_for_log("certificate issued").await?;
    let renewal = line.split("renewal_in_s=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(renewal.is_some_and(|seconds| (260..=391).contains(&seconds)), "{line}");
    Ok(())
}
