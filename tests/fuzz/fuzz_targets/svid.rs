//! A CA's answer: a certificate that is properly signed but says whatever the fuzzer wants it to say, or any text.
#![no_main]

use std::sync::LazyLock;

use fuzz::{Authority, NOW, Request, key, pem};
use libfuzzer_sys::fuzz_target;
use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    stack::Stack,
    x509::{X509, X509StoreContext, store::X509StoreBuilder, verify::X509VerifyParam},
};
use sds_shim::identity::{Answer, SpiffeId, TrustBundle, TrustDomain, X509Svid, certificates, unix_seconds};

const ID: &str = "spiffe://cluster.local/ns/foo/sa/sleep";
const EXTENSIONS: [&str; 6] = ["2.5.29.17", "2.5.29.37", "2.5.29.19", "2.5.29.15", "2.5.29.30", "1.2.3.4"];
/// serverAuth and clientAuth.
const USAGE: &[u8] = b"\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
const SECONDS: [i64; 8] = [-90_000, -60, -1, 0, 1, 60, 90_000, 400 * 86_400];

struct Pki {
    root: Authority,
    other: Authority,
    intermediate: Authority,
    no_authority: Authority,
    ours: PKey<Private>,
    foreign: PKey<Private>,
    id: SpiffeId,
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let root = Authority::new("root");
    Pki {
        intermediate: root.intermediate("intermediate", true),
        no_authority: root.intermediate("no authority", false),
        root,
        other: Authority::new("other"),
        ours: key("ours"),
        foreign: key("foreign"),
        id: SpiffeId::for_service_account(&TrustDomain::default(), "foo", "sleep").expect("good names"),
    }
});

fuzz_target!(|data: &[u8]| {
    match data {
        [b'#', text @ ..] => any_text(&String::from_utf8_lossy(text)),
        [how, from, to, extensions @ ..] => signed(*how, (*from, *to), extensions),
        _ => {}
    }
});

/// Elements are separated by `#`; in them `\x01` stands for a good leaf, `\x02` for the root.
fn any_text(text: &str) {
    let leaf = pem(&PKI.root.sign(&Request {
        name: None,
        key: &PKI.ours,
        validity: (NOW - 60, NOW + 60),
        extensions: &[(EXTENSIONS[0], true, &san()), (EXTENSIONS[1], false, USAGE)],
    }));
    let text = text.replace('\x01', &leaf).replace('\x02', &PKI.root.pem());
    let answer: Vec<_> = text.split('#').map(str::to_owned).collect();
    let taken = verify(&answer);
    // The fuzzer has no key to sign with.
    assert!(!taken || answer[0].trim_start().starts_with("-----BEGIN") || answer[0].contains(leaf.trim_end()));
}

fn signed(how: u8, validity: (u8, u8), mut rest: &[u8]) {
    let bit = |n: u8| how >> n & 1 == 1;
    let (ours, in_answer, below, may_sign) = (!bit(0), !bit(1), bit(2), !bit(3));
    let (san, mut extensions) = (san(), Vec::new());
    if !bit(4) {
        extensions.extend([(EXTENSIONS[0], true, &san[..]), (EXTENSIONS[1], false, USAGE)]);
    }
    let plain = rest.is_empty() && extensions.len() == 2;
    while let [which, len, after @ ..] = rest {
        let (content, after) = after.split_at(after.len().min(usize::from(*len)));
        extensions.push((EXTENSIONS[usize::from(which >> 1) % EXTENSIONS.len()], which & 1 == 1, content));
        rest = after;
    }
    let (from, to) = (moment(validity.0), moment(validity.1));
    let issuer = match (below, may_sign) {
        (false, _) => &PKI.root,
        (true, true) => &PKI.intermediate,
        (true, false) => &PKI.no_authority,
    };
    let key = if ours { &PKI.ours } else { &PKI.foreign };
    let leaf = issuer.sign(&Request { name: None, key, validity: (from, to), extensions: &extensions });
    let mut answer = vec![pem(&leaf)];
    if below {
        answer.push(issuer.pem());
    }
    answer.push(if in_answer { PKI.root.pem() } else { PKI.other.pem() });

    let good = ours && in_answer && (!below || may_sign) && from < to && NOW < to && from < issuer.not_after();
    let taken = verify(&answer);
    assert!(good || !taken, "an answer is taken that must not be");
    assert!(taken || !good || !plain, "a good answer is refused");
}

/// Whether the answer is taken. If it is, the leaf is looked at in the words in which OpenSSL prints it.
fn verify(answer: &[String]) -> bool {
    let (svid, bundle) = match X509Svid::verify(Answer::of(answer), &PKI.ours, &PKI.id, NOW) {
        Ok(issued) => (issued.svid, issued.roots),
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "it is not one line: {error}");
            return false;
        }
    };
    let (leaf, intermediates, _) = svid.parts();
    let text = String::from_utf8(leaf.to_text().expect("memory")).expect("OpenSSL escapes what it prints");
    let told = |name: &str| {
        let mut lines = text.lines().map(str::trim).skip_while(move |line| !line.starts_with(name));
        lines.nth(1).unwrap_or_default().to_owned()
    };
    assert!(leaf.public_key().expect("it has a key").public_eq(&PKI.ours));
    assert!(!told("X509v3 Basic Constraints").starts_with("CA:TRUE"), "the leaf is a CA: {text}");
    assert!(!can_sign(leaf, intermediates, &bundle), "what the leaf signs is accepted: {text}");
    assert!(!told("X509v3 Key Usage").contains("Certificate Sign"), "the leaf can sign: {text}");
    let names = told("X509v3 Subject Alternative Name");
    let uris: Vec<_> = names.split(", ").filter(|name| name.starts_with("URI:")).collect();
    assert_eq!(uris, [format!("URI:{ID}")], "{text}");
    // Without the extension every use is allowed.
    let extended = told("X509v3 Extended Key Usage");
    for usage in ["TLS Web Server Authentication", "TLS Web Client Authentication"] {
        assert!(extended.is_empty() || extended.contains(usage), "{usage} is missing: {text}");
    }
    let mut ends = Vec::new();
    for certificate in std::iter::once(leaf).chain(intermediates) {
        let times = [certificate.not_before(), certificate.not_after()].map(|time| unix_seconds(time).expect("a time"));
        assert!(NOW < times[1], "a certificate is told whose time is over");
        ends.push(times[1]);
    }
    // What is told besides the path to the root may end earlier; the root itself counts.
    ends.extend(bundle.anchors().iter().map(|anchor| anchor.not_after()));
    assert!(svid.validity().1 <= ends[0] && ends.contains(&svid.validity().1));
    let chain = String::from_utf8(svid.chain().expect("memory").pem).expect("PEM is ASCII");
    assert!(der(&certificates(&chain).expect("it reads what it wrote")) == der(&told_chain(leaf, intermediates)));
    let anchors = String::from_utf8(bundle.certificates().pem).expect("PEM is ASCII");
    assert!(TrustBundle::from_pem(&anchors, NOW).is_ok_and(|(_, bad)| bad.is_empty()));
    true
}

/// Whether OpenSSL accepts a certificate that the leaf's owner signs.
fn can_sign(leaf: &X509, intermediates: &[X509], bundle: &TrustBundle) -> bool {
    let child = Authority::with(PKI.ours.clone(), leaf.clone()).sign(&Request {
        name: Some("child"),
        key: &PKI.foreign,
        validity: (NOW - 1, NOW + 1),
        extensions: &[(EXTENSIONS[1], false, USAGE)],
    });
    let mut param = X509VerifyParam::new().expect("memory");
    param.set_time(NOW);
    let mut store = X509StoreBuilder::new().expect("memory");
    let anchors = String::from_utf8(bundle.certificates().pem).expect("PEM is ASCII");
    let anchors = X509::stack_from_pem(anchors.as_bytes()).expect("OpenSSL reads what it wrote");
    anchors.into_iter().for_each(|anchor| store.add_cert(anchor).expect("memory"));
    store.set_param(&param).expect("memory");
    let mut chain = Stack::new().expect("memory");
    told_chain(leaf, intermediates).into_iter().for_each(|above| chain.push(above).expect("memory"));
    let mut context = X509StoreContext::new().expect("memory");
    let accepted = context.init(&store.build(), &child, &chain, |context| context.verify_cert());
    drop(ErrorStack::get());
    accepted.expect("memory")
}

fn told_chain(leaf: &X509, intermediates: &[X509]) -> Vec<X509> {
    std::iter::once(leaf).chain(intermediates).cloned().collect()
}

fn der(certificates: &[X509]) -> Vec<Vec<u8>> {
    certificates.iter().map(|certificate| certificate.to_der().expect("memory")).collect()
}

fn moment(byte: u8) -> i64 {
    NOW + SECONDS[usize::from(byte) % SECONDS.len()]
}

/// The content of the extension that carries our SPIFFE ID.
fn san() -> Vec<u8> {
    let len = ID.len() as u8;
    [&[0x30, len + 2, 0x86, len], ID.as_bytes()].concat()
}
