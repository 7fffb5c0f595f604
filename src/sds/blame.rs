//! Which secret a refusal is about. Envoy makes what it needs of all its secrets once the last of them has come, and
//! whatever is wrong with one of them it says of that last one; of each later one, too, for as long as it is so.

use crate::store::{CERTIFICATE, Kind, ROOTS, Snapshot};

/// How the names begin of anchors that stand for a file.
const FILE_ROOT: &str = "file-root:";

/// Words that Envoy (1.40, `source/common/tls`) has for what is wrong with a certificate or its key, and with anchors or
/// revocation lists.
const OF_CERTIFICATES: [&str; 6] =
    ["certificate chain", "private key", "OCSP", "only RSA certificates", "ECDSA certificates", "pkcs12"];
const OF_ANCHORS: [&str; 5] = ["trusted CA", "CRL", "trust bundle", "trust_domains", "SPIFFE"];

/// The names that a refusal is about, as far as that can be known: of those that the client was `sent`, or one that it
/// asks for elsewhere, or will. Else all that it was sent.
pub(super) fn about(
    reason: &str,
    sent: &[String],
    all: impl FnOnce() -> Vec<String>,
    snapshot: &Snapshot,
) -> Vec<String> {
    let speaks_of = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let anchors = match (speaks_of(&OF_CERTIFICATES), speaks_of(&OF_ANCHORS)) {
        (true, false) => false,
        (false, true) => true,
        _ => return sent.to_vec(),
    };
    let is_meant = |name: &String| match snapshot.get(name) {
        Some(secret) => secret.kind() == if anchors { Kind::Anchors } else { Kind::Certificate },
        None => (name == ROOTS || name.starts_with(FILE_ROOT)) == anchors,
    };
    let own: Vec<_> = sent.iter().filter(|name| is_meant(name)).cloned().collect();
    if !own.is_empty() {
        return own;
    }
    let other: Vec<_> = all().into_iter().filter(is_meant).collect();
    // After a reconnect it may have asked for one thing only, and hold the other still.
    let usual = if anchors { ROOTS } else { CERTIFICATE };
    match other.len() {
        0 if snapshot.contains_key(usual) => vec![usual.to_owned()],
        1 => other,
        _ => sent.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Content, Encoded, SecretStore, View};

    const CHAIN: &str = "Failed to load certificate chain from <inline>, only RSA certificates with 2048-bit or larger \
                         keys are supported";

    #[test]
    fn a_refusal_is_about_what_its_words_say() {
        let store = SecretStore::new(|_, _| Encoded::default());
        for name in ["other", "ROOTCA"] {
            store.publish([(name, Content::anchors(Default::default()), 0)]);
        }
        let View::Open(snapshot) = store.look() else { panic!("it is open") };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let said = |reason: &str, sent: &[&str], all: &[&str]| about(reason, &names(sent), || names(all), &snapshot);
        let both = ["ROOTCA", "default"];
        for (reason, sent, all, expected) in [
            (CHAIN, &["ROOTCA"][..], &both[..], &["default"][..]),
            (CHAIN, &["default"], &both, &["default"]),
            (CHAIN, &both, &both, &["default"]),
            (CHAIN, &["other"], &["other", "file-cert:a~b"], &["file-cert:a~b"]),
            // Two could be meant.
            (CHAIN, &["ROOTCA"], &["ROOTCA", "default", "file-cert:a~b"], &["ROOTCA"]),
            // Nobody has it.
            (CHAIN, &["ROOTCA"], &["ROOTCA"], &["ROOTCA"]),
            ("Failed to load CRL from <inline>", &["default"], &["default"], &["ROOTCA"]),
            ("Failed to load private key from <inline>, Cause: …", &["ROOTCA"], &both, &["default"]),
            ("OCSP response is required for must-staple certificate", &["ROOTCA"], &both, &["default"]),
            ("Failed to load trusted CA certificates from <inline>", &["default"], &both, &["ROOTCA"]),
            ("no idea", &["default"], &both, &["default"]),
            ("no idea", &both, &both, &both),
        ] {
            assert_eq!(said(reason, sent, all), names(expected), "{reason} of {sent:?}");
        }
    }
}
