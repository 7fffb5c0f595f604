use std::{fmt::Write as _, sync::Arc};

use openssl::pkey::{PKey, Private};
use tracing::warn;

use super::{publisher::content, renewal::check_start};
use crate::{
    clock,
    identity::{Answer, Issued, KeySpec, SpiffeId, SvidError, TrustAnchor, TrustBundle, X509Svid},
    status::Workload,
    store::{CERTIFICATE, Content, Secret},
};

/// Begins the text that is handed on.
const FORMAT: &str = "certificate 1 ";
/// Between two parts of it. PEM has no empty lines.
const NEXT: &str = "\n\n";

/// Why what a crashed process has handed on is not served.
#[derive(Debug, thiserror::Error)]
enum Distrust {
    #[error("it was written in another form")]
    Malformed,
    #[error("it is for {0}, which is not our identity")]
    Identity(String),
    #[error("it was issued at {}, but it is now {}: the clock was set back", clock::rfc3339(*.0), clock::rfc3339(*.1))]
    Clock(i64, i64),
    #[error("{0}")]
    Svid(#[from] SvidError),
}

/// A key where it lies to be served to Envoy.
struct Served(Arc<Secret>);

impl AsRef<[u8]> for Served {
    fn as_ref(&self) -> &[u8] {
        self.0.resource().key()
    }
}

/// A certificate that was served before a crash, verified as the CA's answer was.
pub(super) struct Generation {
    /// When it was issued and when it is to be renewed, Unix seconds.
    pub(super) received: i64,
    pub(super) due: i64,
    pub(super) id: SpiffeId,
    pub(super) issued: Issued,
    /// What was served although no source had it any more, until when.
    pub(super) leaving: Vec<(Arc<TrustAnchor>, i64)>,
    /// Until when each address of the CA asked to be left alone.
    pub(super) patience: Vec<i64>,
}

impl Generation {
    /// Where the workload is known, it must be `ours`, in whatever trust domain: it may be about to move to another one.
    fn read(text: &str, key: &PKey<Private>, ours: Option<&SpiffeId>, now: i64) -> Result<Self, Distrust> {
        let mut parts = text.strip_prefix(FORMAT).ok_or(Distrust::Malformed)?.split(NEXT);
        let mut part = || parts.next().ok_or(Distrust::Malformed);
        let (head, chain, roots) = (part()?, part()?, part()?);
        let mut fields = head.split(' ');
        let mut time = || fields.next().and_then(|time| time.parse::<i64>().ok()).ok_or(Distrust::Malformed);
        let (received, due) = (time()?, time()?);
        let id = fields.next().and_then(SpiffeId::parse).ok_or(Distrust::Malformed)?;
        let mut patience = Vec::new();
        for until in fields {
            patience.push(until.parse().map_err(|_| Distrust::Malformed)?);
        }
        if ours.is_some_and(|ours| ours.in_domain(&id.domain()) != id) {
            return Err(Distrust::Identity(id.to_string()));
        }
        if now < received {
            return Err(Distrust::Clock(received, now));
        }
        let answer = Answer::of(&[chain.to_owned(), roots.to_owned()]);
        let issued = X509Svid::verify(answer, key, &id, now)?;
        let mut leaving = Vec::new();
        for part in parts {
            let (until, pem) = part.split_once('\n').ok_or(Distrust::Malformed)?;
            let until = until.parse().map_err(|_| Distrust::Malformed)?;
            // It may have ended meanwhile.
            let bundle = TrustBundle::from_pem(pem, now).map(|(bundle, _)| bundle).unwrap_or_default();
            leaving.extend(bundle.anchors().iter().map(|anchor| (Arc::clone(anchor), until)));
        }
        Ok(Self { received, due, id, issued, leaving, patience })
    }
}

/// What is written of a certificate that is served.
pub(super) struct Parts<'a> {
    /// When it was issued and when it is to be renewed, Unix seconds.
    pub(super) received: i64,
    pub(super) due: i64,
    pub(super) id: &'a SpiffeId,
    /// Until when each address of the CA asked to be left alone.
    pub(super) patience: Vec<i64>,
    /// The chain as PEM, leaf first.
    pub(super) chain: &'a [u8],
    /// The trust anchors that came with it.
    pub(super) anchors: &'a TrustBundle,
    /// What is served although no source has it any more, until when.
    pub(super) leaving: Vec<(Arc<TrustAnchor>, i64)>,
}

impl Parts<'_> {
    /// The text that is handed on beside the key, if it is no longer than `room` and the arena has it.
    pub(super) fn write(&self, room: usize) -> Option<Vec<u8>> {
        /// A time in digits, and what separates it.
        const MOMENT: usize = 24;
        let mut head = format!("{FORMAT}{} {} {}", self.received, self.due, self.id);
        self.patience.iter().for_each(|until| _ = write!(head, " {until}"));
        head.push_str(NEXT);
        let anchors = self.anchors.anchors().iter().map(|anchor| anchor.pem_len());
        let others = self.leaving.iter().map(|(anchor, _)| anchor.pem_len() + MOMENT);
        let len = head.len() + self.chain.len() + 1 + anchors.chain(others).sum::<usize>();
        if len > room || !locked::has_room(&[len]) {
            return None;
        }
        let mut text = Vec::with_capacity(len);
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(self.chain);
        text.push(b'\n');
        self.anchors.anchors().iter().for_each(|anchor| anchor.write_pem(&mut text));
        for (anchor, until) in &self.leaving {
            head.clear();
            let _ = write!(head, "\n{until}\n");
            text.extend_from_slice(head.as_bytes());
            anchor.write_pem(&mut text);
        }
        Some(text)
    }
}

/// Hands on the key that is served, with the text that `write` makes for it.
pub(super) fn hand_on(shown: &Workload, write: impl FnOnce(usize) -> Option<Vec<u8>>) {
    let secrets = shown.secrets();
    let Some(served) = secrets.get(CERTIFICATE).map(|secret| Served(Arc::clone(secret))) else { return };
    locked::hand_on_key(served, write);
}

/// What a crashed process has handed on, if we are its successor and it can be served.
pub(super) fn inherited(ours: Option<&SpiffeId>, spec: &KeySpec, now: i64) -> Option<(Generation, Content)> {
    let read = locked::inherited_key()?.map_err(str::to_owned).and_then(|(key, text)| {
        let read = Generation::read(&text, &key, ours, now);
        let with_content = |read: Generation| {
            let content = content(&read.issued.svid, spec)?;
            check_start(&read.issued.svid, false)?;
            Ok((read, content))
        };
        read.and_then(with_content).map_err(|error| error.to_string())
    });
    match read {
        Ok(read) => Some(read),
        Err(why) => {
            warn!("not serving the certificate from before the crash: {why}; requesting a new one");
            locked::hand_on_no_key();
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use testkit::development_ca::{Leaf, Lifetime, Pki, PkiOptions};

    const OURS: &str = "spiffe://td.example/ns/foo/sa/sleep";

    /// A certificate for this identity that lasts an hour, with its key and root.
    fn issue(id: &str) -> (PKey<Private>, String, String) {
        let pki = Pki::new("test");
        let issued = pki.issue(&Leaf::workload(id, Duration::from_secs(3600)));
        let key = PKey::private_key_from_pem(issued.key_pem.as_bytes()).unwrap();
        (key, issued.chain_pem, pki.root_pem())
    }

    fn read(text: &str, key: &PKey<Private>, now: i64) -> Result<Generation, String> {
        Generation::read(text, key, SpiffeId::parse(OURS).as_ref(), now).map_err(|error| error.to_string())
    }

    #[test]
    fn a_generation_is_restored_with_its_schedule_and_all_anchors() {
        let (now, leaving) = (clock::now(), Pki::new("leaving").root_pem());
        // It may be in the trust domain from which we move to another.
        for id in [OURS, "spiffe://before.example/ns/foo/sa/sleep"] {
            let (key, chain, root) = issue(id);
            let text = format!("{FORMAT}{} {} {id} 0 77\n\n{chain}\n{root}\n{}\n{leaving}", now - 5, now + 9, now + 60);
            let read = read(&text, &key, now).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((read.received, read.due, read.id.as_str()), (now - 5, now + 9, id));
            assert_eq!(read.patience, [0, 77]);
            assert_eq!((read.issued.roots.anchors().len(), read.leaving.len()), (1, 1));
            assert_eq!(read.leaving[0].1, now + 60);
        }
    }

    #[test]
    fn a_mismatched_generation_is_rejected() {
        let (now, (key, chain, root)) = (clock::now(), issue(OURS));
        let of = |id: &str| format!("{FORMAT}{now} {now} {id}\n\n{chain}\n{root}");
        let refused = |text: &str, key: &PKey<Private>, at: i64| {
            read(text, key, at).err().unwrap_or_else(|| panic!("read {text:?}"))
        };
        assert!(read(&of(OURS), &key, now).is_ok());
        assert!(refused(&of(OURS), &key, now - 1).contains("the clock was set back"));
        assert!(refused(&of(OURS), &key, now + 3601).contains("a certificate is valid from "));
        assert!(refused(&of(OURS), &issue(OURS).0, now).contains("does not match"));
        let other = "spiffe://td.example/ns/foo/sa/other";
        assert_eq!(refused(&of(other), &key, now), format!("it is for {other}, which is not our identity"));
        // The leaf is for another one than is said.
        let other = "spiffe://other.example/ns/foo/sa/sleep";
        assert!(refused(&of(other), &key, now).contains("the leaf's URI SAN is"));
        let stranger = of(OURS).replace(&root, &Pki::new("stranger").root_pem());
        assert!(refused(&stranger, &key, now).contains("the chain does not lead to a root"));
        for text in [
            "",
            FORMAT,
            "certificate 2 1 1 x",
            &of(OURS)[..FORMAT.len() + 20],
            &of("no identity"),
            &of("spiffe://td.example/ns/foo/sa/sleep x"),
        ] {
            assert_eq!(refused(text, &key, now), "it was written in another form", "{text:?}");
        }
        for leaving in ["soon\n", "17"] {
            assert_eq!(refused(&format!("{}\n{leaving}", of(OURS)), &key, now), "it was written in another form");
        }
    }

    /// One that was on its way out may have ended meanwhile.
    #[test]
    fn an_anchor_that_has_ended_costs_no_certificate() {
        let (now, (key, chain, root)) = (clock::now(), issue(OURS));
        let ended = PkiOptions { root: Lifetime { not_before: -60, not_after: -1 }, ..PkiOptions::new("ended") };
        let (ended, lasting) = (Pki::with_options(&ended).root_pem(), Pki::new("lasting").root_pem());
        let text = format!("{FORMAT}{now} {now} {OURS}\n\n{chain}\n{root}\n9\n{ended}\n{}\n{lasting}", now + 9);
        let read = read(&text, &key, now).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.leaving.iter().map(|(_, until)| *until).collect::<Vec<_>>(), [now + 9]);
    }
}
