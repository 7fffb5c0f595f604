//! The protocol's rules without any transport: what a request or a change of secrets makes us answer.
//!
//! Sources: Envoy, "xDS REST and gRPC protocol"; the contract with Istio's agent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

use crate::{
    bounded::foreign_text,
    store::{Secret, Snapshot},
};

/// Longest part of a client's error text that is told.
const ERROR_TEXT: usize = 256;

/// A request that cannot be answered. It ends the stream that it came on, and no other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("the type URL is {0:?}; only {SECRET_TYPE_URL} is served here")]
    TypeUrl(String),
    #[error("{0} resource names on one stream are too many; the limit is {MAX_NAMES}")]
    TooManyNames(usize),
    #[error("a resource name of {0} bytes is too long; the limit is {MAX_NAME_BYTES}")]
    NameTooLong(usize),
}

/// Names that one stream may subscribe to.
pub(super) const MAX_NAMES: usize = 64;
/// Length of a name: `file-cert:` names hold two paths.
pub(super) const MAX_NAME_BYTES: usize = 8192 + 16;

/// Responses that may be in flight at a time so that each gets its verdict; what is said of older ones is passed over.
pub(super) const IN_FLIGHT: usize = 4;

/// Bytes of the names in them, beyond those of the last one.
pub(super) const NAMES: usize = 4096;

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
    /// Makes nonces differ from those of every other stream, which a client may still carry after a reconnect.
    stream: u64,
    /// Responses sent on this stream.
    sent: u64,
    /// Those that were not answered yet, the oldest first.
    unanswered: VecDeque<Sent>,
}

/// A response: which one it is, and the names in it, each with its version.
struct Sent {
    number: u64,
    names: Vec<(String, String)>,
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
}

impl Subscription {
    /// `stream` is unique among the streams of this process and unlikely to be that of an earlier one.
    pub(super) fn new(stream: u64) -> Self {
        Self { names: BTreeMap::new(), stream, sent: 0, unanswered: VecDeque::new() }
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
        check_names(&request.resource_names, 0)?;
        // The first request of a stream, or one that asks anew: nonces of another stream or server mean nothing.
        let initial = self.sent == 0 || request.response_nonce.is_empty();
        if !initial && request.response_nonce != self.nonce() {
            // What it wants was decided before it had seen the last response; what it says of an earlier one holds.
            let verdict = self.verdict(&request.response_nonce, request.error_detail.as_ref());
            return Ok(Outcome { verdict, ..Outcome::default() });
        }
        let wanted: BTreeSet<&String> = request.resource_names.iter().collect();
        if initial {
            self.names.clear();
        }
        self.names.retain(|name, _| wanted.contains(name));
        for name in wanted {
            self.names.entry(name.clone()).or_default();
        }
        let verdict = self.verdict(&request.response_nonce, request.error_detail.as_ref());
        Ok(Outcome { verdict, ..self.due(snapshot, now) })
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
        check_names(&request.resource_names_subscribe, self.names.len())?;
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name);
        }
        for name in &request.resource_names_subscribe {
            // Named again, it is wanted again; on a reconnect the client tells what it holds.
            let version = request.initial_resource_versions.get(name).cloned();
            self.names.insert(name.clone(), Known { answered: version.is_some(), version, present: false });
        }
        // Only a verdict depends on the nonce: a change of names is never lost, because it is told only once.
        let verdict = self.verdict(&request.response_nonce, request.error_detail.as_ref());
        Ok(Outcome { verdict, ..self.due(snapshot, now) })
    }

    /// What a change of secrets makes us send.
    pub(super) fn changed(&mut self, snapshot: &Snapshot, now: i64) -> Outcome {
        self.due(snapshot, now)
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

    /// The nonce of the last response; the next one has another.
    pub(super) fn nonce(&self) -> String {
        self.nonce_of(self.sent)
    }

    fn nonce_of(&self, number: u64) -> String {
        format!("{:x}-{number}", self.stream)
    }

    fn due(&mut self, snapshot: &Snapshot, now: i64) -> Outcome {
        let mut outcome = Outcome::default();
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
            let names = outcome.send.iter().map(|(name, secret)| (name.clone(), secret.version().to_owned()));
            self.unanswered.push_back(Sent { number: self.sent, names: names.collect() });
            while self.unanswered.len() > 1 && (self.unanswered.len() > IN_FLIGHT || self.in_flight_bytes() > NAMES) {
                self.unanswered.pop_front();
            }
        }
        outcome
    }

    fn in_flight_bytes(&self) -> usize {
        self.unanswered.iter().flat_map(|sent| &sent.names).map(|(name, _)| name.len()).sum()
    }

    fn verdict(&mut self, nonce: &str, error: Option<&Status>) -> Option<(Verdict, Vec<String>)> {
        let at = self.unanswered.iter().position(|sent| nonce == self.nonce_of(sent.number))?;
        // Answers come in the order of the responses: those before it get none any more.
        let Sent { names, .. } = self.unanswered.drain(..=at).next_back()?;
        for (name, version) in &names {
            if let Some(known) = self.names.get_mut(name).filter(|known| known.version.as_ref() == Some(version)) {
                known.answered = true;
            }
        }
        let verdict = match error {
            Some(status) => Verdict::Nack(foreign_text(&status.message, ERROR_TEXT)),
            None => Verdict::Ack,
        };
        Some((verdict, names.into_iter().map(|(name, _)| name).collect()))
    }
}

fn check_type(type_url: &str) -> Result<(), ProtocolError> {
    // Implied by the service when it is empty.
    if type_url.is_empty() || type_url == SECRET_TYPE_URL {
        return Ok(());
    }
    Err(ProtocolError::TypeUrl(foreign_text(type_url, ERROR_TEXT)))
}

fn check_names(names: &[String], held: usize) -> Result<(), ProtocolError> {
    if let Some(name) = names.iter().find(|name| name.len() > MAX_NAME_BYTES) {
        return Err(ProtocolError::NameTooLong(name.len()));
    }
    if names.len() + held > MAX_NAMES {
        return Err(ProtocolError::TooManyNames(names.len() + held));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
