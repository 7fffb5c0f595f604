//! The protocol's rules without any transport: what a request or a change of secrets makes us answer.
//!
//! Sources: Envoy, "xDS REST and gRPC protocol"; the contract with Istio's agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

use super::rights::Rights;
use crate::{
    bounded::foreign_text,
    store::{CERTIFICATE, ROOTS, Secret, Snapshot},
};

/// Longest part of a client's error text that is told.
const ERROR_TEXT: usize = 256;

/// A request that cannot be answered. It ends the stream that it came on, and no other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("the type URL is {0:?}; only {SECRET_TYPE_URL} is served here")]
    TypeUrl(String),
}

/// Asks for everything in other xDS services (delta).
const WILDCARD: &str = "*";
/// Names that one stream may subscribe to.
pub(super) const MAX_NAMES: usize = 64;
/// Length of a name: `file-cert:` names hold two paths.
pub(super) const MAX_NAME_BYTES: usize = 8192 + 16;

/// Responses that may be in flight at a time so that each gets its verdict; what is said of older ones is passed over.
pub(super) const IN_FLIGHT: u64 = 8;

/// What a client said about an earlier response.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It took it.
    Ack,
    /// It refused it, for the reason it gave, with anything like a key taken out.
    Nack(String),
}

/// What came of a request.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Resources to send now; a state-of-the-world response may hold only some of the subscribed ones.
    pub(super) send: Vec<(String, Arc<Secret>)>,
    /// Resources to tell as removed (delta only).
    pub(super) removed: Vec<String>,
    /// What was said about a response, and for which names.
    pub(super) verdict: Option<(Verdict, Vec<String>)>,
    /// A name that is not remembered, and why: nobody holds it.
    pub(super) left_out: Option<(String, String)>,
}

impl Outcome {
    /// Whether there is something to send.
    pub(super) fn is_response(&self) -> bool {
        !self.send.is_empty() || !self.removed.is_empty()
    }
}

/// One stream's subscriptions. The same for all three RPCs: they differ only in how they name what they want.
pub(super) struct Subscription {
    names: BTreeMap<String, Known>,
    /// What there can be for this client; `None` for all names.
    rights: Option<Rights>,
    /// Makes nonces differ from those of every other stream, which a client may still carry after a reconnect.
    stream: u64,
    /// Responses sent on this stream.
    sent: u64,
    /// The last one that was answered.
    answered_to: u64,
}

/// What the client knows of a subscribed name.
#[derive(Default)]
struct Known {
    /// The version that it holds or was last sent.
    version: Option<String>,
    /// Whether we held the name when we last looked. Only what was there can be removed: before the first
    /// certificate after a restart, the client's own copy is still good.
    present: bool,
    /// Whether it has answered to that version, or came with it.
    answered: bool,
    /// Whether it has taken a version, whatever it said of a later one.
    held: bool,
    /// The responses without an answer that the name was in: a bit for each, the last response's is the lowest. Not
    /// more, because there are many streams.
    in_flight: u8,
}

impl Subscription {
    /// `stream` is unique among the streams of this process and unlikely to be that of an earlier one.
    pub(super) fn new(stream: u64) -> Self {
        Self { names: BTreeMap::new(), rights: None, stream, sent: 0, answered_to: 0 }
    }

    /// The same for a client that is told at once, where the variant has words for it, what it can never have.
    pub(super) fn of(self, rights: Rights) -> Self {
        Self { rights: Some(rights), ..self }
    }

    /// A request of `StreamSecrets` or `FetchSecrets`: it names all that the client wants. `now` is Unix seconds.
    ///
    /// # Errors
    /// When the request is not for secrets or asks for too much.
    pub(super) fn request(
        &mut self,
        request: &DiscoveryRequest,
        snapshot: &Snapshot,
        now: i64,
    ) -> Result<Outcome, ProtocolError> {
        check_type(&request.type_url)?;
        // The first request of a stream, or one that asks anew: nonces of another stream or server mean nothing.
        let said =
            Said { nonce: &request.response_nonce, error: request.error_detail.as_ref(), taken: &request.version_info };
        let initial = self.sent == 0 || request.response_nonce.is_empty();
        if !initial && request.response_nonce != self.nonce() {
            // What it wants was decided before it had seen the last response; what it says of an earlier one holds.
            return Ok(Outcome { verdict: self.verdict(said), ..Outcome::default() });
        }
        let verdict = self.verdict(said);
        let (wanted, left_out) = bounded(request.resource_names.iter().collect(), &BTreeMap::new());
        self.names.retain(|name, known| {
            if initial {
                *known = Known { in_flight: known.in_flight, held: known.held, ..Known::default() };
            }
            wanted.contains(name)
        });
        for name in wanted {
            self.names.entry(name.clone()).or_default();
        }
        Ok(Outcome { verdict, left_out, ..self.due(snapshot, now, Vec::new()) })
    }

    /// A request of `DeltaSecrets`: it names what changes in what the client wants.
    ///
    /// # Errors
    /// When the request is not for secrets or asks for too much.
    pub(super) fn delta_request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
        now: i64,
    ) -> Result<Outcome, ProtocolError> {
        check_type(&request.type_url)?;
        // Only a verdict depends on the nonce: a change of names is never lost, because it is told only once.
        let verdict =
            self.verdict(Said { nonce: &request.response_nonce, error: request.error_detail.as_ref(), taken: "" });
        let subscribed = &request.resource_names_subscribe;
        for name in request.resource_names_unsubscribe.iter().filter(|name| !subscribed.contains(name)) {
            self.names.remove(name);
        }
        let (subscribed, never): (Vec<_>, Vec<_>) = subscribed.iter().partition(|name| self.is_possible(name));
        let (subscribed, left_out) = bounded(subscribed, &self.names);
        for name in subscribed {
            // Named again, it is wanted again; on a reconnect the client tells what it holds.
            let version = request.initial_resource_versions.get(name).cloned();
            let (answered, before) = (version.is_some(), self.names.get(name));
            let in_flight = before.map_or(0, |known| known.in_flight);
            let held = answered || before.is_some_and(|known| known.held);
            self.names.insert(name.clone(), Known { version, present: false, answered, held, in_flight });
        }
        // It takes no place, and is answered as often as it is asked for: whoever connects to an Envoy may choose it.
        let never = never.into_iter().filter(|name| name.len() <= MAX_NAME_BYTES).take(MAX_NAMES);
        Ok(Outcome { verdict, left_out, ..self.due(snapshot, now, never.cloned().collect()) })
    }

    /// Whether there may ever be something under a name for this client. `*` is no name.
    fn is_possible(&self, name: &str) -> bool {
        name == WILDCARD || self.rights.as_ref().is_none_or(|rights| rights.can_have(name))
    }

    /// What a change of secrets makes us send.
    pub(super) fn changed(&mut self, snapshot: &Snapshot, now: i64) -> Outcome {
        self.due(snapshot, now, Vec::new())
    }

    /// Names that are asked for and not held, for a warning or a look at what is pending.
    pub(super) fn pending<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a str> {
        self.names.keys().map(String::as_str).filter(|name| !snapshot.contains_key(*name))
    }

    /// All that the client wants.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Which version of a name the client has answered to: `None` when it does not want the name, `Some(None)` when it
    /// has yet to answer.
    pub(super) fn answered(&self, name: &str) -> Option<Option<&str>> {
        self.names.get(name).map(|known| known.version.as_deref().filter(|_| known.answered))
    }

    /// Whether the client has taken some version of a name, be it before we came.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|known| known.held)
    }

    /// The nonce of the last response; the next one has another.
    pub(super) fn nonce(&self) -> String {
        self.nonce_of(self.sent)
    }

    fn nonce_of(&self, number: u64) -> String {
        format!("{:x}-{number}", self.stream)
    }

    /// What is to be sent, beside the removal of names that were never there.
    fn due(&mut self, snapshot: &Snapshot, now: i64, never: Vec<String>) -> Outcome {
        let mut outcome = Outcome { removed: never, ..Outcome::default() };
        for (name, known) in &mut self.names {
            let secret = snapshot.get(name);
            match secret {
                // One that has expired is of no use to those who do not have it.
                Some(secret) if known.version.as_deref() != Some(secret.version()) && secret.is_valid(now) => {
                    known.version = Some(secret.version().to_owned());
                    known.answered = false;
                    outcome.send.push((name.clone(), Arc::clone(secret)));
                }
                None if known.present => {
                    known.version = None;
                    outcome.removed.push(name.clone());
                }
                _ => {}
            }
            known.present = secret.is_some();
        }
        if outcome.is_response() {
            self.sent += 1;
            self.names.values_mut().for_each(|known| known.in_flight <<= 1);
            for (name, _) in &outcome.send {
                if let Some(known) = self.names.get_mut(name) {
                    known.in_flight |= 1;
                }
            }
        }
        outcome
    }

    fn verdict(&mut self, Said { nonce, error, taken }: Said<'_>) -> Option<(Verdict, Vec<String>)> {
        let ages = 0..IN_FLIGHT.min(self.sent - self.answered_to);
        let age = ages.into_iter().find(|age| nonce == self.nonce_of(self.sent - age))?;
        // Answers come in the order of the responses: those before it get none any more.
        self.answered_to = self.sent - age;
        let later = (1_u8 << age) - 1;
        let mut names = Vec::new();
        for (name, known) in &mut self.names {
            if known.in_flight >> age & 1 == 1 {
                known.answered |= known.in_flight & later == 0;
                known.held |= match (error, known.version.as_deref()) {
                    (None, _) => true,
                    // It tells what it has taken last. That it names what it refuses proves nothing: it takes unread
                    // what it has had before.
                    (Some(_), Some(refused)) => !taken.is_empty() && !taken.contains(refused),
                    (Some(_), None) => !taken.is_empty(),
                };
                names.push(name.clone());
            }
            known.in_flight &= later;
        }
        let verdict = match error {
            Some(status) => Verdict::Nack(foreign_text(&status.message, ERROR_TEXT)),
            None => Verdict::Ack,
        };
        Some((verdict, names))
    }
}

/// What a request says of an earlier response.
struct Said<'a> {
    nonce: &'a str,
    error: Option<&'a Status>,
    /// The version that the client has taken last, where the variant has a place for it.
    taken: &'a str,
}

fn check_type(type_url: &str) -> Result<(), ProtocolError> {
    // Implied by the service when it is empty.
    if type_url.is_empty() || type_url == SECRET_TYPE_URL {
        return Ok(());
    }
    Err(ProtocolError::TypeUrl(foreign_text(type_url, ERROR_TEXT)))
}

/// Those of the names that a stream which has subscribed to `held` may subscribe to as well, and one that it may not,
/// with the reason. Nothing could be held of that one; the stream goes on for the sake of the others.
fn bounded<'a>(
    names: Vec<&'a String>,
    held: &BTreeMap<String, Known>,
) -> (BTreeSet<&'a String>, Option<(String, String)>) {
    let cut = |name: &String| name.chars().take(ERROR_TEXT).collect();
    let (mut wanted, mut left_out) = (BTreeSet::new(), None);
    // What every sidecar needs comes before whatever else a client has thought of.
    let (first, rest): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| [CERTIFICATE, ROOTS].contains(&name.as_str()));
    let mut room = MAX_NAMES.saturating_sub(held.len());
    for name in first.into_iter().chain(rest) {
        let known = held.contains_key(name) || wanted.contains(name);
        if name.len() > MAX_NAME_BYTES {
            left_out = Some((cut(name), format!("the name has {} bytes; the limit is {MAX_NAME_BYTES}", name.len())));
        } else if room == 0 && !known {
            let why = format!("its stream already has {MAX_NAMES} names, the limit");
            left_out.get_or_insert_with(|| (cut(name), why));
        } else {
            room -= usize::from(!known);
            wanted.insert(name);
        }
    }
    (wanted, left_out)
}

#[cfg(test)]
mod tests;
