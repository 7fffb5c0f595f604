//! The manual's page of what we leave out and what Envoy says of it.

use std::{collections::BTreeMap, fmt::Write as _};

use testkit::envoy::judge::Verdict;

/// Where it is.
pub(crate) const FILE: &str = "src/manual/evidence/certificates.md";

/// What came of all of a kind.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) served: usize,
    pub(crate) accepted: usize,
    pub(crate) refused: Vec<String>,
    pub(crate) left_out: usize,
    /// By our reason: how many Envoy refuses, and what it would have taken.
    reasons: BTreeMap<String, (usize, Vec<String>)>,
}

impl Tally {
    /// Why we leave it out, if we do, and what Envoy says of it.
    pub(crate) fn enter(&mut self, what: &str, left_out: Option<String>, verdict: Verdict) {
        let Some(reason) = left_out else {
            self.served += 1;
            match verdict {
                Ok(()) => self.accepted += 1,
                Err(reason) => self.refused.push(format!("{what}: {reason}")),
            }
            return;
        };
        self.left_out += 1;
        let (refused, would_do) = self.reasons.entry(plain(&reason)).or_default();
        match verdict {
            Ok(()) => would_do.push(what.to_owned()),
            Err(_) => *refused += 1,
        }
    }

    fn would_do(&self) -> usize {
        self.reasons.values().map(|(_, would_do)| would_do.len()).sum()
    }
}

/// A reason without what differs from one to the next.
fn plain(reason: &str) -> String {
    let mut text = reason;
    for before in ["element 1 of the CA's answer: ", "the certificate chain: ", "certificate 1 in it "] {
        text = text.strip_prefix(before).unwrap_or(text);
    }
    for (start, told) in [
        ("a certificate is valid from", "is not valid now"),
        ("expired at", "is not valid now"),
        ("the leaf's URI SAN is", "the leaf's URI SANs are not our SPIFFE ID alone"),
        ("the leaf has a key", "the leaf has a key of a kind or size that Envoy does not present"),
        ("the leaf has an RSA key", "the leaf has a key of a kind or size that Envoy does not present"),
        ("the leaf has an elliptic key that", "the leaf has a key of a kind or size that Envoy does not present"),
        ("the chain does not lead to a root in the answer", "the chain does not lead to a root in the answer"),
        ("is too large", "is too large: the limits are 16 KiB and 512 ASN.1 elements"),
        ("OpenSSL", "the leaf's key cannot be parsed"),
    ] {
        if text.starts_with(start) && !text.starts_with("the leaf has a key usage") {
            return told.to_owned();
        }
    }
    text.strip_suffix(": Envoy refuses it").unwrap_or(text).to_owned()
}

/// The page, of anchors, of certificates from the CA, and of those that are mounted.
pub(crate) fn write([anchors, issued, mounted]: &[Tally; 3]) -> String {
    const TITLES: [&str; 3] =
        ["Trust anchors, each alone in ROOTCA", "Certificates from the CA", "Certificates from mounted files"];
    let mut page = HEAD.to_owned();
    for (title, tally) in TITLES.into_iter().zip([anchors, issued, mounted]) {
        let Tally { served, accepted, left_out, refused, .. } = tally;
        let (shown, would_do) = (served + left_out, tally.would_do());
        let refused = refused.len();
        let _ =
            writeln!(page, "| {title} | {shown} | {served} | {accepted} | **{refused}** | {left_out} | {would_do} |");
    }
    for (title, tally) in TITLES.into_iter().zip([anchors, issued, mounted]) {
        let _ = write!(
            page,
            "\n## {title}\n\n| why we leave it out | Envoy refuses | Envoy takes | of these, for example |\n|---|---|---|---|\n"
        );
        for (reason, (refused, would_do)) in &tally.reasons {
            let example = would_do.first().map_or("-", String::as_str);
            let _ = writeln!(page, "| {reason} | {refused} | {} | {example} |", would_do.len());
        }
    }
    page + TAIL
}

const HEAD: &str = "# Certificates\n
What we refuse, what we warn of, and what Envoy 1.40 does. Envoy refuses a whole secret for one certificate in it that it \
cannot read or will not present; so our reading is as strict as its library's, BoringSSL's. `tests/roots/odd_certificates.rs` \
makes odd certificates, some hundred elements each changed in fourteen ways and what was seen in the field, and shows \
each to a real Envoy: what we serve as we serve it, and what we leave out as it came. \
`CERTIFICATES_PAGE=1 cargo test --test roots odd_certificates` writes this page.

| what | shown | served | accepted | refused by Envoy | left out | Envoy would take |
|---|---|---|---|---|---|---|
";

const TAIL: &str = "
What we leave out and Envoy would take: an anchor that may not sign certificates, or has an extension twice, verifies \
nobody; one that ended makes Envoy refuse peers; OpenSSL, which verifies our own connections, cannot read two kinds of \
text in names; and a CA's answer must be ours, valid, and lead to its roots.

## What we serve and warn of

A mounted certificate that peers will refuse is served: whoever mounted it may know peers of another kind.

| flaw | reason in the metric | what Envoy does |
|---|---|---|
| extended key usage without clientAuth or serverAuth | `extended_key_usage` | presents it; refuses a peer with it on that side |
| RSA, key usage without digitalSignature | `key_usage` | presents it; refuses a peer with it |
| the leaf leads to none of the anchors: intermediates are missing, or the anchors are another CA's | `path` | presents it; refuses a peer with it |

`tests/files/mounted_flaws.rs` has Envoy meet such peers. Elliptic keys without digitalSignature, RSA keys below 2048 bits, \
curves but P-256, P-384 and P-521, and must-staple without a staple are refused by Envoy itself: they are never served. \
Chains are put in order; doubles and roots are removed.

See also: [conformance][conformance] · [differences from Istio's agent][differences] · [mounted files][behaviour#mounted-files]

[conformance]: conformance.md
[differences]: differences.md
[behaviour#mounted-files]: ../reference/behaviour.md#mounted-files
";
