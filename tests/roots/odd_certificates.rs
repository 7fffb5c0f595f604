//! Whatever we serve, Envoy accepts: hundreds of odd certificates, read by us and shown to a real Envoy, each alone.
//! What we leave out is shown to it as well, so that we do not refuse what would do.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use crate::odd::page::{self, Tally};
use crate::odd::{
    EDITS, Node, certificate,
    forms::{self, Parts},
    signed,
};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    x509::X509,
};
use sds_shim::{
    clock,
    identity::{Answer, Credential, KeyText, SpiffeId, TrustBundle, X509Svid},
};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Leaf, Pki},
    envoy::{
        Bootstrap, Envoy, SdsTransport, Upstream,
        judge::{Judge, Verdict},
    },
    fixture::{Open, Site, write},
    mtls_server::MtlsServer,
    scratch::Scratch,
    shim::ShimBuilder,
    workspace,
};

const ID: &str = "spiffe://cluster.local/ns/foo/sa/odd";

/// An Envoy that has accepted a certificate and anchors, for a listener and for a cluster, and now hears of others.
struct Court {
    // The process ends before its directory goes.
    envoy: Envoy,
    judge: Judge,
    _scratch: Scratch,
}

impl Court {
    async fn open() -> Result<Self, Failure> {
        let scratch = Scratch::new("odd")?;
        let judge = Judge::start(scratch.path())?;
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let upstream = Upstream { host: "peer".to_owned(), address: nowhere, spiffe_id: ID.to_owned() };
        let bootstrap = Bootstrap::new("odd", SdsTransport::EnvoyGrpc);
        let bootstrap = bootstrap.inbound(nowhere, &[ID.to_owned()]).outbound(&[upstream]).build();
        let mut envoy = Envoy::start("Envoy that judges", scratch.path(), &bootstrap)?;
        let pki = Pki::new("good");
        let issued = pki.issue(&Leaf::workload(ID, std::time::Duration::from_secs(3600)));
        let anchors = judge.anchors("ROOTCA", pki.root_pem().as_bytes()).await;
        let anchors = anchors.map_err(|failure| envoy.explain(failure))?;
        let certificate = judge.certificate("default", issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).await?;
        assert_eq!((anchors, certificate), (Ok(()), Ok(())), "what is good");
        envoy.wait_ready().await?;
        Ok(Self { envoy, judge, _scratch: scratch })
    }

    async fn anchors(&self, pem: &[u8]) -> Result<Verdict, Failure> {
        self.judge.anchors("ROOTCA", pem).await.map_err(|failure| self.envoy.explain(failure))
    }
}

fn p256() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn pem(der: &[u8]) -> String {
    let base64 = openssl::base64::encode_block(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Odd roots: what is odd, and the certificate.
fn roots() -> Vec<(String, Vec<u8>)> {
    let key = p256();
    let good = Parts::root(&key.public_key_to_der().expect("a public key"));
    let whole = Node::parse(&signed(&good.content(), &key));
    let edits = (0..whole.count()).flat_map(|at| EDITS.iter().map(move |edit| (at, edit)));
    let mut all: Vec<_> =
        edits.map(|(at, (what, edit))| (format!("element {at} {what}"), whole.edited(at, *edit))).collect();
    all.extend(forms::all(&good).into_iter().map(|(what, parts)| (what, signed(&parts.content(), &key))));
    let algorithms = [("of another algorithm", [0x30, 3, 6, 1, 42].as_slice()), ("without algorithm", &[0x30, 0])];
    let bits = [&[0, 1, 2][..], &[], &[0], &[3, 0xa8], &[3, 0xaf], &[8, 0]];
    for (what, algorithm) in algorithms {
        all.push((format!("signed {what}"), certificate(&good.content(), algorithm, &[0, 1, 2])));
    }
    for bits in bits {
        all.push((format!("signature {bits:02x?}"), certificate(&good.content(), &forms::ECDSA_SHA256, bits)));
    }
    let text = |der: &[u8]| [der, b"\0\0\0\0"].concat();
    all.push(("zeros after the end".to_owned(), text(&signed(&good.content(), &key))));
    all
}

/// Odd leaves, signed by the intermediate whose key this is: what is odd, the certificate, and its own key.
fn leaves(issuer: &PKey<Private>, name: &[u8]) -> Vec<(String, Vec<u8>, PKey<Private>)> {
    let key = p256();
    let good = Parts::leaf(&key.public_key_to_der().expect("a public key"), name, ID);
    let content = Node::parse(&good.content());
    let edits = (0..content.count()).flat_map(|at| EDITS.iter().map(move |edit| (at, edit)));
    let edited = edits.map(|(at, (what, edit))| (format!("element {at} {what}"), content.edited(at, *edit)));
    let forms =
        forms::all(&good).into_iter().chain(forms::leaves::all(&good)).map(|(what, parts)| (what, parts.content()));
    let mut all: Vec<_> =
        edited.chain(forms).map(|(what, content)| (what, signed(&content, issuer), key.clone())).collect();
    for (what, key) in keys() {
        let parts = Parts::leaf(&key.public_key_to_der().expect("a public key"), name, ID);
        all.push((what.to_owned(), signed(&parts.content(), issuer), key.clone()));
        for (what, parts) in forms::leaves::all(&parts).into_iter().filter(|(what, _)| what.starts_with("key usage")) {
            all.push((format!("{what}, of another kind of key"), signed(&parts.content(), issuer), key.clone()));
        }
    }
    all
}

/// Keys of all kinds that OpenSSL makes for certificates.
fn keys() -> Vec<(&'static str, PKey<Private>)> {
    let curve = |curve| {
        let group = EcGroup::from_curve_name(curve).expect("a curve");
        PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
    };
    let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).expect("a key")).expect("a key");
    vec![
        ("P-224", curve(Nid::SECP224R1)),
        ("P-384", curve(Nid::SECP384R1)),
        ("P-521", curve(Nid::SECP521R1)),
        ("secp256k1", curve(Nid::SECP256K1)),
        ("Ed25519", PKey::generate_ed25519().expect("a key")),
        ("Ed448", PKey::generate_ed448().expect("a key")),
        ("RSA 1024", rsa(1024)),
        ("RSA 2048", rsa(2048)),
    ]
}

/// Each certificate as it comes from the CA and as it is mounted: shown to Envoy as we would serve it.
async fn certificates(court: &Court) -> Result<[Tally; 2], Failure> {
    let now = clock::now();
    let pki = Pki::new("odd");
    let [(_, own), (_, own_key), ..] = pki.plugged_in().or_fail("take the CA's files")?;
    let issuer = PKey::private_key_from_pem(own_key.as_bytes()).or_fail("read the CA's key")?;
    let name = X509::from_pem(own.as_bytes()).and_then(|own| own.subject_name().to_der()).or_fail("read its name")?;
    let domain = "cluster.local".parse().or_fail("read the trust domain")?;
    let id = SpiffeId::for_service_account(&domain, "foo", "odd").or_fail("make the SPIFFE ID")?;
    let (mut issued, mut mounted) = (Tally::default(), Tally::default());
    for (what, der, key) in leaves(&issuer, &name) {
        let answer = [pem(&der), own.clone(), pki.root_pem()];
        let key_pem = key.private_key_to_pem_pkcs8().or_fail("write the key")?;
        let chain = answer[..2].concat();
        let svid = X509Svid::verify(Answer::of(&answer), &key, &id, now).map(|issued| issued.svid.chain());
        let (_, key_text) = KeyText::split(key_pem.as_slice(), key_pem.len(), 1 << 16).or_fail("split the key")?;
        let credential = Credential::from_pem(&chain, &key_text).map(|credential| credential.chain());
        let read = [svid.map_err(|error| error.to_string()), credential.map_err(|error| error.to_string())];
        // Envoy accepts what it has refused when the same bytes come again.
        let mut verdicts = BTreeMap::new();
        for (tally, read) in [&mut issued, &mut mounted].into_iter().zip(read) {
            let shown = match &read {
                Ok(chain) => chain.as_ref().map(|chain| chain.pem.clone()).unwrap_or_default(),
                Err(_) => chain.clone().into_bytes(),
            };
            if !verdicts.contains_key(&shown) {
                let verdict = court.judge.certificate("default", &shown, &key_pem).await;
                verdicts.insert(shown.clone(), verdict.map_err(|failure| court.envoy.explain(failure))?);
            }
            tally.enter(&what, read.err(), verdicts[&shown].clone());
        }
    }
    Ok([issued, mounted])
}

/// Each anchor alone in ROOTCA.
async fn anchors(court: &Court) -> Result<Tally, Failure> {
    let now = clock::now();
    let mut tally = Tally::default();
    for (what, der) in roots() {
        let text = pem(&der);
        let read = TrustBundle::from_pem(&text, now).map(|(bundle, _)| bundle.certificates().pem);
        let verdict = court.anchors(read.as_ref().map_or(text.as_bytes(), Vec::as_slice)).await?;
        tally.enter(&what, read.err().map(|error| error.to_string()), verdict);
    }
    Ok(tally)
}

#[tokio::test]
async fn whatever_is_served_is_accepted() -> testkit::Result {
    let court = Court::open().await?;
    let [issued, mounted] = certificates(&court).await?;
    let tallies = [anchors(&court).await?, issued, mounted];
    for tally in &tallies {
        assert!(tally.refused.is_empty(), "Envoy refuses what we serve: {:#?}", tally.refused);
        assert!(tally.served > 50 && tally.left_out > 300, "a corpus of both: {tally:#?}");
    }
    let (page, file) = (page::write(&tallies), workspace().join(page::FILE));
    if std::env::var_os("CERTIFICATES_PAGE").is_some() {
        return std::fs::write(&file, page).or_fail("write the page");
    }
    let held = std::fs::read_to_string(&file).or_fail("read the page")?;
    // Keys and signatures are others in each run, and with them a length here and there: a case or two falls under
    // another of the reasons.
    let without_counts = |page: &str| page.chars().filter(|character| !character.is_ascii_digit()).collect::<String>();
    assert!(
        without_counts(&held) == without_counts(&page),
        "CERTIFICATES_PAGE=1 cargo test --test roots writes {} anew",
        page::FILE
    );
    Ok(())
}

/// Peers look whether each CA on the path may issue for the side that they meet.
#[test]
fn an_intermediate_for_one_side_alone_is_refused() {
    let (root_key, issuer_key, key) = (p256(), p256(), p256());
    let public = |key: &PKey<Private>| key.public_key_to_der().expect("a public key");
    let domain = "cluster.local".parse().expect("a trust domain");
    let id = SpiffeId::for_service_account(&domain, "foo", "odd").expect("a SPIFFE ID");
    let root = Parts::root(&public(&root_key));
    for (purposes, is_used) in [(&[1, 2][..], true), (&[1], false), (&[2], false), (&[3], false)] {
        let issuer = root.subordinate(&public(&issuer_key), purposes);
        let leaf = Parts::leaf(&public(&key), issuer.subject(), ID);
        let answer = [(&leaf, &issuer_key), (&issuer, &root_key), (&root, &root_key)]
            .map(|(parts, key)| pem(&signed(&parts.content(), key)));
        let verified = X509Svid::verify(Answer::of(&answer), &key, &id, clock::now());
        let told = verified.err().map(|error| error.to_string());
        assert_eq!(told.is_none(), is_used, "{purposes:?}: {told:?}");
        assert!(told.is_none_or(|told| told.contains("purpose")), "{purposes:?}");
    }
}

/// One odd anchor in each source costs only itself: Envoy has all others.
#[tokio::test]
async fn an_odd_anchor_costs_only_itself_whatever_its_source() -> testkit::Result {
    let key = p256();
    let good = Parts::root(&key.public_key_to_der().or_fail("write a key")?);
    let forms = forms::all(&good);
    let odd = |what: &str| {
        let found = forms.iter().find(|(name, _)| name == what).map(|(_, parts)| pem(&signed(&parts.content(), &key)));
        found.ok_or_else(|| Failure::new(format!("nothing is odd by {what}")))
    };
    let roots: Vec<_> = ["file", "extra", "proxy", "answer"].iter().map(|name| Pki::new(name).root_pem()).collect();
    let scene = Site::with(CaOptions::default()).await?;
    scene.write_root(&[scene.ca.root_pem(), odd("version 1 with extensions")?, roots[0].clone()].concat())?;
    let extra = scene.workload.path().join("extra.pem");
    write(&extra, &[odd("serial number [00, 01]")?, roots[1].clone()].concat())?;
    scene.ca.set_extra_roots(vec![odd("a key with set unused bits")?, roots[3].clone()]);
    let proxy = serde_json::json!({ "caCertificatesPem": [odd("subject with Latin-1 as UTF-8")?, roots[2]] });
    let edit = |shim: ShimBuilder| {
        shim.env("SDS_SHIM_EXTRA_ROOTS", extra.display().to_string()).env("PROXY_CONFIG", proxy.to_string())
    };
    let mut gate = MtlsServer::start(scene, &[ID], edit).await?;
    let mut all = Open::connect(&mut gate.shim, "ROOTCA").await?;
    let served = all.next(&gate.shim).await?.trusted_ca_pem;
    for root in [&gate.scene.pki.root_pem()].into_iter().chain(&roots) {
        assert!(served.contains(root.trim_end()), "a good one is missing from {served}");
    }
    assert_eq!(served.matches("BEGIN CERTIFICATE").count(), 5, "{served}");
    for reason in ["its version does not allow", "is not DER", "unused bits", "invalid characters for its type"] {
        gate.shim.wait_for_log(reason).await?;
    }
    Ok(())
}
