use super::*;
use testkit::development_ca::Pki;

fn pem(lists: &[RevocationList]) -> String {
    let mut pem = Vec::new();
    lists.iter().for_each(|list| list.pem(&mut pem));
    assert_eq!(pem.len(), lists.iter().map(RevocationList::pem_len).sum::<usize>());
    String::from_utf8(pem).unwrap()
}

#[test]
fn lists_are_read_from_one_text() {
    let (one, two) = (Pki::new("one"), Pki::new("two"));
    let text = format!("noise{}{}", one.crl(&[], 600), two.root_crl(&[], -5));
    let lists = RevocationList::all(text.as_bytes()).unwrap();
    assert_eq!(pem(&lists), text["noise".len()..]);
    assert!(lists[0].issuer().contains("one intermediate") && lists[1].issuer().ends_with("CN=two"));
    assert!(lists[0].next_update() > lists[1].next_update() + 600);
    assert!(lists.iter().all(|list| list.facts().is_crl));
}

#[test]
fn one_list_may_be_der() {
    let text = Pki::new("one").crl(&[], 600);
    let der = openssl::x509::X509Crl::from_pem(text.as_bytes()).unwrap().to_der().unwrap();
    assert_eq!(pem(&RevocationList::all(&der).unwrap()), text);
    let error = RevocationList::all(&der[..der.len() - 1]).unwrap_err();
    assert_eq!(error, "it is neither a DER CRL nor PEM");
}

#[test]
fn invalid_lists_are_named() {
    let error = |text: &str| RevocationList::all(text.as_bytes()).unwrap_err();
    assert_eq!(error(&Pki::new("x").root_pem()), "it holds no PEM CRL");
    assert_eq!(error("\n"), "it holds no PEM CRL");
    assert_eq!(error(&format!("{BEGIN}\nAAAA\n{END}")), "CRL 1 cannot be parsed");
    assert_eq!(error(&format!("{BEGIN}\nAAAA")), "CRL 1 is cut off: it has no -----END X509 CRL-----");
    assert_eq!(RevocationList::all(b"").unwrap(), []);
}

/// Whoever sees less in a list than OpenSSL may serve what Envoy refuses.
#[test]
fn no_byte_can_be_changed_unseen_and_every_cut_is_refused() {
    let pki = Pki::new("one");
    let leaf = pki.issue(&testkit::development_ca::Leaf::workload("spiffe://a/b", std::time::Duration::from_secs(60)));
    let text = pki.crl(&[&leaf], 600);
    let der = openssl::x509::X509Crl::from_pem(text.as_bytes()).unwrap().to_der().unwrap();
    for end in 0..der.len() {
        assert!(RevocationList::new(der[..end].to_vec(), 1).unwrap().is_none(), "cut after {end}");
    }
    let certificate = openssl::x509::X509::from_pem(pki.intermediate_pem().as_bytes()).unwrap();
    let signers = CrlSigner::of([certificate]);
    assert_eq!(RevocationList::new(der.clone(), 1).unwrap().unwrap().flaw(&signers), None);
    let mut read = 0;
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1;
        let Some(list) = RevocationList::new(changed.clone(), 1).unwrap() else { continue };
        read += 1;
        assert!(openssl::x509::X509Crl::from_der(&changed).is_ok(), "OpenSSL refuses a change at {at}: {changed:02x?}");
        assert!(list.flaw(&signers).is_some() || !list.is_of(&signers[0]), "a change at {at}");
    }
    assert!(read > 100, "{read}");
}

/// Whatever OpenSSL reads as well, it reads as we do.
#[test]
fn changed_lists_are_read_as_openssl_reads_them() {
    let pki = Pki::new("one");
    let leaf = pki.issue(&testkit::development_ca::Leaf::workload("spiffe://a/b", std::time::Duration::from_secs(60)));
    let text = pki.crl(&[&leaf, &leaf], 600);
    let der = openssl::x509::X509Crl::from_pem(text.as_bytes()).unwrap().to_der().unwrap();
    // Knuth's generator: the same in every run.
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut both, mut ours) = (0, 0);
    for _ in 0..5000 {
        let mut changed = der.clone();
        for _ in 0..=random(3) {
            let at = random(changed.len());
            changed[at] = [random(256) as u8, changed[at] ^ (1 << random(8)), 0x30, 0][random(4)];
        }
        let Some(list) = RevocationList::new(changed.clone(), 1).unwrap() else { continue };
        let Ok(other) = openssl::x509::X509Crl::from_der(&changed) else {
            // What is of no use to anybody is not served, and need not be readable.
            ours += usize::from(list.parts.flaw.is_none());
            continue;
        };
        both += 1;
        let seconds = |time| crate::identity::unix_seconds(time).unwrap();
        assert_eq!(seconds(other.last_update()), list.this_update());
        assert_eq!(other.next_update().map(seconds), list.parts.next_update);
        assert_eq!(other.get_revoked().map_or(0, |entries| entries.len()), list.entries());
    }
    drop(ErrorStack::get());
    assert!(both > 1000 && ours == 0, "both {both}, only we {ours}");
}
