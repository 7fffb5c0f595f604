//! How the process is, as one row of a table of all sidecars: `packaging/kubectl/kubectl-sds_shim` writes that table.

use crate::{
    clock::moment,
    status::{PeersView, RenewalFacts, Requested, Status},
    store::{CERTIFICATE, ROOTS},
};

/// Characters of one field.
const FIELD: usize = 600;
/// What stands where there is nothing to tell.
const NOTHING: &str = "-";

/// Identity, state, end of the certificate, anchors, NACKs, level of protection, troubles: with tabs between them, and
/// no other control character.
pub(super) fn row(status: &Status, now: i64, level: &str, missing: &[String]) -> String {
    let (workloads, peers, readiness) = (status.workloads(), status.peers.view(), status.readiness(now));
    let mut troubles = Troubles(String::new());
    let state = if readiness.is_ok() { "ready" } else { "NOT READY" };
    if let Err(reason) = readiness {
        troubles.add("", &reason.to_string());
    }
    let (mut identity, mut ends, mut anchors, mut first) = (String::new(), i64::MAX, 0, i64::MAX);
    for workload in &workloads {
        let facts = workload.renewal();
        troubles.of(&facts);
        if identity.is_empty() {
            identity = facts.identity;
        }
        let secrets = workload.secrets();
        if let Some(certificate) = secrets.get(CERTIFICATE) {
            ends = ends.min(certificate.not_after());
        }
        let roots = secrets.get(ROOTS).map_or(&[][..], |roots| roots.facts());
        for anchor in roots.iter().filter(|facts| !facts.is_crl) {
            (anchors, first) = (anchors + 1, first.min(anchor.not_after));
        }
    }
    refusals(&peers, &mut troubles);
    let output = status.output().and_then(|output| output.trouble);
    let on_change = status.on_change().and_then(|facts| facts.trouble);
    for trouble in status.admin().iter().chain(&output).chain(&on_change).chain(missing) {
        troubles.add("", trouble);
    }
    if workloads.len() > 1 {
        identity += &format!(" +{}", workloads.len() - 1);
    }
    let at = |time: i64| if time == i64::MAX { String::new() } else { moment(time, now) };
    let anchors = if anchors == 0 { String::new() } else { format!("{anchors}, {}", at(first)) };
    let nacks = peers.resources.values().map(|counts| counts.nacks).sum::<u64>().to_string();
    let mut row = String::new();
    for text in [&identity, state, &at(ends), &anchors, &nacks, level, &troubles.0] {
        field(&mut row, text);
    }
    row
}

/// What clients have refused and not taken since.
fn refusals(peers: &PeersView, troubles: &mut Troubles) {
    for (name, state, _) in peers.streams.values().flat_map(|stream| &stream.resources) {
        if *state == Requested::Refused {
            let nack = peers.resources.get(name).and_then(|counts| counts.last_nack.as_ref());
            troubles.add(&format!("Envoy refused {name}: "), nack.map_or("", |(_, text)| text));
        }
    }
}

/// All troubles, each told once: that something is not ready has the same reason as what is wrong with it.
struct Troubles(String);

impl Troubles {
    fn of(&mut self, facts: &RenewalFacts) {
        if let Some(trouble) = &facts.trouble {
            self.add("", &trouble.text);
        }
        if let Some((_, trouble)) = &facts.revocation.trouble {
            self.add("revocation lists: ", trouble);
        }
        for (_, flaw) in &facts.flaws {
            self.add("", flaw);
        }
    }

    fn add(&mut self, what: &str, text: &str) {
        // Nobody reads more than a field of it.
        if self.0.len() > 4 * FIELD || (!text.is_empty() && self.0.contains(text)) {
            return;
        }
        for part in [if self.0.is_empty() { "" } else { "; " }, what, text] {
            self.0.push_str(part);
        }
    }
}

fn field(row: &mut String, text: &str) {
    if !row.is_empty() {
        row.push('\t');
    }
    let text = if text.is_empty() { NOTHING } else { text };
    for (at, character) in text.chars().enumerate() {
        if at == FIELD {
            row.push('…');
            return;
        }
        row.push(if character.is_control() { ' ' } else { character });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        status::{Peer, Reason, Refusal, RevocationFacts, Sources, Trouble},
        store::{Content, Encoded, SecretStore},
    };

    fn status() -> Arc<Status> {
        Arc::new(Status::new(0, 0, Sources::default(), []))
    }

    fn fields(status: &Status, missing: &[&str]) -> Vec<String> {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        let row = row(status, 100, "locked", &missing);
        assert!(!row.contains(|c: char| c.is_control() && c != '\t'), "{row:?}");
        row.split('\t').map(str::to_owned).collect()
    }

    fn trouble(text: &str) -> Trouble {
        Trouble { since: 1, reason: Reason::Refused, text: text.to_owned(), reached: true }
    }

    #[test]
    fn unknown_values_are_a_dash() {
        let told = fields(&status(), &[]);
        let why = "no SDS request has carried a service-account token yet";
        assert_eq!(told, ["-", "NOT READY", "-", "-", "0", "locked", why]);
    }

    #[test]
    fn each_problem_is_shown_once_on_one_line() {
        let status = status();
        let store = Arc::new(SecretStore::new(|_, _| Encoded::default()));
        let workload = status.workload("spiffe://a".to_owned(), &store);
        workload.failed(1, trouble("the CA\nsays\tno"));
        let told = fields(&status, &["a larger limit"]);
        let why = "default is not available yet: the CA says no; a larger limit";
        assert_eq!(told, ["spiffe://a", "NOT READY", "-", "-", "0", "locked", why]);
    }

    #[test]
    fn problems_other_than_readiness_are_shown() {
        let status = status();
        let store = Arc::new(SecretStore::new(|_, _| Encoded::default()));
        let workload = status.workload("spiffe://a".to_owned(), &store);
        for name in [CERTIFICATE, ROOTS] {
            store.publish([(name, Content::anchors(Default::default()), 4000)]);
        }
        workload.mounted(1, vec![("weak", "a weak key".to_owned())]);
        let lists = Some(("unreadable", "no list".to_owned()));
        workload.revocation(RevocationFacts { trouble: lists, ..RevocationFacts::default() });
        status.admin_is(false, Some("the port is taken".to_owned()));
        status.wrote(1, Err("the disk is full".to_owned()));
        status.acted(1, Err("Envoy does not answer".to_owned()));
        let told = fields(&status, &[]).pop();
        let expected = "revocation lists: no list; a weak key; the port is taken; the disk is full; \
                        Envoy does not answer";
        assert!(told.as_ref().is_some_and(|told| told.ends_with(expected)), "{told:?}");
    }

    #[test]
    fn a_refusal_is_a_trouble_until_it_is_taken() {
        let status = status();
        let client = status.peers.connected(Peer::default());
        let stream = client.stream("StreamSecrets", 1);
        let names = [CERTIFICATE.to_owned()];
        stream.wants([CERTIFICATE].into_iter(), 1);
        stream.refused(Refusal { sent: &names, about: &names, reason: "not to my taste", holds: true }, 2);
        let told = fields(&status, &[]);
        assert_eq!(told[4], "1");
        assert!(told[6].ends_with("; Envoy refused default: not to my taste"), "{told:?}");
        stream.accepted(&names, 3);
        let told = fields(&status, &[]);
        assert_eq!((told[4].as_str(), told[6].contains("Envoy")), ("1", false), "{told:?}");
    }

    #[test]
    fn several_workloads_are_counted_and_a_long_text_is_cut() {
        let status = status();
        let store = Arc::new(SecretStore::new(|_, _| Encoded::default()));
        let both = ["spiffe://a", "spiffe://b"].map(|identity| status.workload(identity.to_owned(), &store));
        both[0].failed(1, trouble(&"ä".repeat(2 * FIELD)));
        let told = fields(&status, &[]);
        assert_eq!((told[0].as_str(), told[6].chars().count()), ("spiffe://a +1", FIELD + 1));
        assert!(told[6].ends_with('…'));
    }
}
