use super::*;
use openssl::x509::X509;
use testkit::development_ca::{CrlOptions, Issued, Leaf, Lifetime, Pki};

const ID: &str = "spiffe://td/ns/a/sa/b";

struct Scene {
    pki: Pki,
    revocation: Revocation,
    now: i64,
}

impl Scene {
    fn new(fail_open: bool) -> Self {
        let pki = Pki::new("one");
        let own = CrlSigner::of([X509::from_pem(pki.intermediate_pem().as_bytes()).unwrap()]);
        let revocation = Revocation { fail_open, own, ..Revocation::default() };
        Self { pki, revocation, now: crate::clock::now() }
    }

    fn list(&self, not_before: i64, not_after: i64) -> String {
        self.with(CrlOptions { life: Lifetime { not_before, not_after }, ..CrlOptions::fresh_for(600) })
    }

    fn with(&self, options: CrlOptions<'_>) -> String {
        self.pki.crl_with(&[], &options)
    }

    fn hold(&mut self, text: &str) {
        let lists = RevocationList::all(text.as_bytes()).unwrap().into_iter().map(Arc::new).collect();
        self.revocation.in_file(InFile { lists, trouble: None });
    }

    /// What is served so many seconds from now, and all else.
    fn at(&mut self, later: i64) -> (String, Selection) {
        let anchors = CrlSigner::of([X509::from_pem(self.pki.root_pem().as_bytes()).unwrap()]);
        let selection = self.revocation.select(&anchors, true, self.now + later);
        let mut pem = Vec::new();
        selection.lists.iter().for_each(|list| list.pem(&mut pem));
        (String::from_utf8(pem).unwrap(), selection)
    }
}

#[test]
fn the_newest_of_each_issuer_counts() {
    for fail_open in [false, true] {
        let mut scene = Scene::new(fail_open);
        let (old, new, root) = (scene.list(-100, -10), scene.list(-50, 600), scene.pki.root_crl(&[], 600));
        scene.hold(&format!("{old}{new}{root}"));
        let (served, selection) = scene.at(0);
        assert_eq!(served, format!("{new}{root}"));
        assert!(selection.whole_chain && selection.trouble.is_none() && selection.told.is_empty());
        let newer = scene.list(-40, 600);
        scene.hold(&format!("{newer}{new}"));
        assert_eq!(scene.at(0).0, newer);
    }
}

#[test]
fn a_list_with_a_later_start_takes_over_then() {
    let mut scene = Scene::new(false);
    let (former, next) = (scene.list(-50, 600), scene.list(100, 900));
    scene.hold(&next);
    let (served, selection) = scene.at(0);
    assert_eq!((served.as_str(), selection.next), ("", Some(scene.now + 100)));
    assert_eq!(selection.trouble.map(|(reason, _)| reason), Some("not_yet_valid"));
    scene.hold(&former);
    assert_eq!(scene.at(0).0, former);
    scene.hold(&next);
    let (served, selection) = scene.at(1);
    assert_eq!((served, selection.next), (former.clone(), Some(scene.now + 100)));
    assert!(selection.trouble.is_none(), "{:?}", selection.trouble);
    assert_eq!(scene.at(99).0, former);
    assert_eq!(scene.at(100).0, next);
}

#[test]
fn a_list_that_envoy_cannot_use_replaces_nothing() {
    let mut scene = Scene::new(false);
    let former = scene.list(-50, 600);
    let flawed = scene.with(CrlOptions { foreign_key: true, ..CrlOptions::fresh_for(600) });
    scene.hold(&former);
    scene.at(0);
    scene.hold(&flawed);
    let (served, selection) = scene.at(0);
    assert_eq!(served, former);
    let (reason, text) = selection.trouble.unwrap();
    assert!(
        reason == "unusable" && text.contains("has a wrong signature") && text.contains("the previous one"),
        "{text}"
    );
    // Nor does one that is too old replace one that is not.
    let old = scene.list(-500, -1);
    scene.hold(&old);
    assert_eq!(scene.at(0).0, former);
    assert_eq!(scene.at(600).0, old, "the former one is too old by now, too");
}

#[test]
fn expired_lists_stay_in_place_unless_failing_open() {
    for fail_open in [false, true] {
        let mut scene = Scene::new(fail_open);
        let (short, root) = (scene.list(-50, 100), scene.pki.root_crl(&[], 600));
        scene.hold(&format!("{short}{root}"));
        let (served, selection) = scene.at(99);
        assert_eq!((served, selection.next), (format!("{short}{root}"), Some(scene.now + 100)));
        let (served, selection) = scene.at(100);
        assert_eq!(served, if fail_open { String::new() } else { format!("{short}{root}") });
        assert!(selection.told.iter().any(|told| told.contains("has expired at")), "{:?}", selection.told);
    }
}

#[test]
fn whole_chains_are_checked_once_every_ca_is_covered() {
    let mut scene = Scene::new(false);
    let (leaf, root) = (scene.list(-50, 600), scene.pki.root_crl(&[], 600));
    let other = CrlSigner::of([X509::from_pem(Pki::new("two").root_pem().as_bytes()).unwrap()]);
    scene.hold(&leaf);
    assert!(!scene.at(0).1.whole_chain);
    scene.hold(&format!("{leaf}{root}"));
    assert!(scene.at(0).1.whole_chain);
    let mut anchors = CrlSigner::of([X509::from_pem(scene.pki.root_pem().as_bytes()).unwrap()]);
    assert!(!scene.revocation.select(&anchors, false, scene.now).whole_chain, "some anchors are not known");
    anchors.extend(other);
    let selection = scene.revocation.select(&anchors, true, scene.now);
    assert!(!selection.whole_chain);
    let told = selection.told.concat();
    assert!(told.contains("has no effect on the CA certificates") && told.contains("CN=two"), "{told}");
    scene.revocation.leaf_only = true;
    assert!(!scene.at(0).1.whole_chain);
}

#[test]
fn a_missing_list_of_our_own_issuer_is_reported() {
    let mut scene = Scene::new(false);
    let root = scene.pki.root_crl(&[], 600);
    scene.hold(&root);
    let (served, selection) = scene.at(0);
    assert_eq!(served, root);
    assert!(selection.told.concat().contains("which issued our own certificate"), "{:?}", selection.told);
}

/// A CA that has a new key under its name.
#[test]
fn lists_of_another_key_with_the_same_name_are_distinguished() {
    let mut scene = Scene::new(false);
    let renewed = Pki::new("one");
    let leaf: Issued = renewed.issue(&Leaf::workload(ID, std::time::Duration::from_secs(60)));
    let (one, two) = (scene.list(-50, 600), renewed.crl(&[&leaf], 600));
    scene.revocation.own.extend(CrlSigner::of([X509::from_pem(renewed.intermediate_pem().as_bytes()).unwrap()]));
    scene.hold(&format!("{one}{two}"));
    assert_eq!(scene.at(0).0, format!("{one}{two}"), "both keys are in use");
}
