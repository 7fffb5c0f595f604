use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use prost::Message;
use sds_shim_proto::{
    SECRET_TYPE_URL, SmallCodec,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    google::rpc::Status,
};
use tokio_stream::Stream;
use tonic::{Streaming, codec::Codec};

use super::super::{
    limits::MAX_REQUEST,
    message::Pieces,
    payload,
    stream::{Delta, StateOfTheWorld, Variant},
    subscription::{IN_FLIGHT, MAX_NAME_BYTES, MAX_NAMES, Outcome, Subscription, Verdict},
};
use crate::{
    identity::TrustBundle,
    store::{Content, Encoded, Piece, SecretStore, Snapshot, Validation, View},
};

/// Names that secrets are published under.
const HELD: [&str; 3] = ["default", "ROOTCA", "x"];
/// What the codec lets pass; its own limit is private.
const MAX_FIELDS: usize = 512;

/// One stream, state of the world or incremental: requests as they come from the wire, among changes of the secrets
/// and of the time. A client that does nothing but take what it is sent holds the right secrets after each step.
pub fn requests(data: &[u8]) {
    match data.split_first() {
        Some((first, steps)) if first % 2 == 0 => Client::<StateOfTheWorld>::new().run(steps),
        Some((_, steps)) => Client::<Delta>::new().run(steps),
        None => {}
    }
}

/// What the two variants call the parts of their messages.
trait Wire: Variant {
    fn parts(request: &mut Self::Request) -> Parts<'_>;
    /// Which names the request leaves subscribed, and what of them the client says to hold.
    fn subscribe(request: &Self::Request, wanted: &mut Wanted, asks_anew: bool);
    /// Names in a request that count towards the limit.
    fn names(request: &Self::Request) -> &[String];
    fn decode_response(bytes: &[u8]) -> Response;
    /// Whether a request with the nonce of an older response is passed over.
    const STALE_IS_IGNORED: bool;
    /// Whether all names are told in each request.
    const TELLS_ALL: bool;
}

struct Parts<'a> {
    type_url: &'a str,
    nonce: &'a mut String,
    error: Option<&'a Status>,
    /// The longest of the vectors that it was unfolded to.
    longest: usize,
}

/// Nonce, names of removed resources, values of those that are there.
type Response = (String, Vec<String>, Vec<Bytes>);

/// Subscribed names, each with the version that the client holds.
type Wanted = BTreeMap<String, Option<String>>;

struct Client<V: Wire> {
    subscription: Subscription,
    snapshot: Snapshot,
    store: SecretStore,
    now: i64,
    wanted: Wanted,
    /// Names that this stream has sent and not removed.
    sent: BTreeSet<String>,
    nonces: BTreeSet<String>,
    /// What was sent and not answered, the oldest first: nonces and names.
    unanswered: Vec<(String, Vec<String>)>,
    _variant: std::marker::PhantomData<V>,
}

impl<V: Wire> Client<V> {
    fn new() -> Self {
        Self {
            subscription: Subscription::new(1),
            snapshot: Snapshot::default(),
            store: SecretStore::new(payload::encode),
            now: 0,
            wanted: Wanted::new(),
            sent: BTreeSet::new(),
            nonces: BTreeSet::new(),
            unanswered: Vec::new(),
            _variant: std::marker::PhantomData,
        }
    }

    fn run(mut self, mut steps: &[u8]) {
        while let [what, argument, rest @ ..] = steps {
            steps = rest;
            let name = HELD[usize::from(*argument) % HELD.len()];
            match what % 4 {
                0 => {
                    let [high, low, rest @ ..] = rest else { return };
                    let (message, rest) = rest.split_at(rest.len().min(usize::from(*high) << 8 | usize::from(*low)));
                    steps = rest;
                    if self.request(message, usize::from(*argument)).is_none() {
                        return;
                    }
                    continue;
                }
                1 => {
                    let domains = vec![(argument.to_string(), TrustBundle::default())];
                    let content = Content::ValidationContext(Validation { domains, ..Validation::default() });
                    let end = self.now + i64::from(argument >> 4);
                    self.store.publish([(name, content, end)]);
                    let View::Open(snapshot) = self.store.view().borrow().clone() else { return };
                    self.snapshot = snapshot;
                }
                2 => {
                    let mut snapshot = (*self.snapshot).clone();
                    snapshot.remove(name);
                    self.snapshot = Arc::new(snapshot);
                }
                _ => self.now += i64::from(*argument),
            }
            let outcome = self.subscription.changed(&self.snapshot, self.now);
            assert!(outcome.verdict.is_none());
            self.take(&outcome);
        }
    }

    /// Takes a request from the wire, in pieces of this size. None when it ends the stream.
    fn request(&mut self, message: &[u8], piece: usize) -> Option<()> {
        let mut request: V::Request = decode(message, piece)?;
        let (before, sent) = (self.subscription.nonce(), !self.nonces.is_empty());
        let parts = V::parts(&mut request);
        assert!(parts.longest <= MAX_FIELDS, "a message unfolded to {} elements", parts.longest);
        if parts.nonce == "*" {
            // What a fuzzer would not hit upon.
            parts.nonce.clone_from(&before);
        }
        if parts.nonce == "<"
            && let Some((oldest, _)) = self.unanswered.first()
        {
            parts.nonce.clone_from(oldest);
        }
        let (is_last, asks_anew) = (sent && *parts.nonce == before, !sent || parts.nonce.is_empty());
        let answers = self.unanswered.iter().position(|(nonce, _)| *nonce == *parts.nonce);
        let foreign = !["", SECRET_TYPE_URL].contains(&parts.type_url);
        let error = parts.error.cloned();
        let names = V::names(&request);
        let held = if V::TELLS_ALL { 0 } else { self.wanted.len() };
        let too_much = names.len() + held > MAX_NAMES || names.iter().any(|name| name.len() > MAX_NAME_BYTES);

        let answered = V::request(&mut self.subscription, &request, &self.snapshot, self.now);
        assert_eq!(answered.is_err(), foreign, "{answered:?}");
        let outcome = answered.ok()?;
        if too_much {
            // Some of them were left out, and the stream goes on with the others; which, no model here says.
            assert!(self.subscription.names().count() <= MAX_NAMES);
            assert!(self.subscription.names().all(|name| name.len() <= MAX_NAME_BYTES));
            return None;
        }
        let answered = answers.and_then(|at| self.unanswered.drain(..=at).next_back());
        let expected = answered.map(|(_, names)| (error.is_some(), names));
        assert_eq!(outcome.verdict.as_ref().map(|(verdict, names)| (is_nack(verdict), names.clone())), expected);
        if V::STALE_IS_IGNORED && !asks_anew && !is_last {
            assert!(!outcome.is_response(), "a stale request had an effect");
        } else {
            V::subscribe(&request, &mut self.wanted, asks_anew);
            // What is wanted no more has no verdict.
            for (_, names) in &mut self.unanswered {
                names.retain(|name| self.wanted.contains_key(name));
            }
            self.sent.retain(|name| self.wanted.contains_key(name));
        }
        self.take(&outcome);
        Some(())
    }

    /// Takes what is sent, and looks at what it holds then.
    fn take(&mut self, outcome: &Outcome) {
        for (name, secret) in &outcome.send {
            assert!(self.snapshot.get(name).is_some_and(|held| Arc::ptr_eq(held, secret)), "{name} is another secret");
            assert!(secret.is_valid(self.now), "{name} has expired");
            let known = self.wanted.get_mut(name).expect("only what is wanted is sent");
            assert_ne!(known.as_deref(), Some(secret.version()), "{name} is sent again");
            *known = Some(secret.version().to_owned());
            self.sent.insert(name.clone());
        }
        for name in &outcome.removed {
            assert!(!self.snapshot.contains_key(name), "{name} is told as removed and is there");
            *self.wanted.get_mut(name).expect("only what was wanted is removed") = None;
            self.sent.remove(name);
        }
        for (name, known) in &self.wanted {
            match self.snapshot.get(name) {
                Some(secret) if secret.is_valid(self.now) => assert_eq!(known.as_deref(), Some(secret.version())),
                Some(_) => {}
                None => assert!(!self.sent.contains(name), "the removal of {name} is not told"),
            }
        }
        let pending: Vec<_> = self.wanted.keys().filter(|name| !self.snapshot.contains_key(*name)).collect();
        assert_eq!(self.subscription.pending(&self.snapshot).collect::<Vec<_>>(), pending);
        assert!(self.wanted.len() <= MAX_NAMES);
        if outcome.is_response() {
            assert!(self.nonces.insert(self.subscription.nonce()), "a nonce is used twice");
            let names = outcome.send.iter().map(|(name, _)| name.clone()).collect();
            self.unanswered.push((self.subscription.nonce(), names));
            if self.unanswered.len() as u64 > IN_FLIGHT {
                self.unanswered.remove(0);
            }
            self.check_response(outcome);
        }
    }

    /// What goes on the wire says what the outcome says.
    fn check_response(&self, outcome: &Outcome) {
        let Some(pieces) = V::response(outcome, self.subscription.nonce(), MARK) else {
            assert!(outcome.send.is_empty());
            return;
        };
        let (nonce, removed, values) = V::decode_response(&message(&pieces));
        assert_eq!(nonce, self.subscription.nonce());
        let whole = |resource: &Encoded| -> Vec<u8> {
            resource.opening(MARK).into_iter().chain(bytes_of(resource.pieces())).collect()
        };
        let sent = outcome.send.iter().map(|(_, secret)| -> Vec<u8> { whole(secret.resource()) });
        assert!(values.iter().map(|value| value.to_vec()).eq(sent));
        assert!(removed == outcome.removed || V::TELLS_ALL);
    }
}

/// Any mark is as good as another.
const MARK: u64 = 7;

fn is_nack(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Ack => false,
        Verdict::Nack(text) => {
            assert!(text.chars().count() <= 257 && !text.contains(char::is_control), "not fit for the log: {text:?}");
            true
        }
    }
}

impl Wire for StateOfTheWorld {
    const STALE_IS_IGNORED: bool = true;
    const TELLS_ALL: bool = true;

    fn parts(request: &mut DiscoveryRequest) -> Parts<'_> {
        Parts {
            longest: request.resource_names.len(),
            type_url: &request.type_url,
            nonce: &mut request.response_nonce,
            error: request.error_detail.as_ref(),
        }
    }

    fn subscribe(request: &DiscoveryRequest, wanted: &mut Wanted, asks_anew: bool) {
        let held = std::mem::take(wanted);
        for name in &request.resource_names {
            let known = held.get(name).filter(|_| !asks_anew).cloned().flatten();
            wanted.insert(name.clone(), known);
        }
    }

    fn names(request: &DiscoveryRequest) -> &[String] {
        &request.resource_names
    }

    fn decode_response(bytes: &[u8]) -> Response {
        let response = DiscoveryResponse::decode(bytes).expect("a response can be read");
        (response.nonce, Vec::new(), response.resources.into_iter().map(|any| any.value).collect())
    }
}

impl Wire for Delta {
    const STALE_IS_IGNORED: bool = false;
    const TELLS_ALL: bool = false;

    fn parts(request: &mut DeltaDiscoveryRequest) -> Parts<'_> {
        let names = request.resource_names_subscribe.len().max(request.resource_names_unsubscribe.len());
        Parts {
            longest: names.max(request.initial_resource_versions.len()),
            type_url: &request.type_url,
            nonce: &mut request.response_nonce,
            error: request.error_detail.as_ref(),
        }
    }

    fn subscribe(request: &DeltaDiscoveryRequest, wanted: &mut Wanted, _asks_anew: bool) {
        wanted.retain(|name, _| !request.resource_names_unsubscribe.contains(name));
        for name in &request.resource_names_subscribe {
            wanted.insert(name.clone(), request.initial_resource_versions.get(name).cloned());
        }
    }

    fn names(request: &DeltaDiscoveryRequest) -> &[String] {
        &request.resource_names_subscribe
    }

    fn decode_response(bytes: &[u8]) -> Response {
        let response = DeltaDiscoveryResponse::decode(bytes).expect("a response can be read");
        let values = response.resources.into_iter().map(|resource| resource.resource.expect("a value").value);
        (response.nonce, response.removed_resources, values.collect())
    }
}

fn bytes_of(pieces: impl Iterator<Item = Piece>) -> Vec<u8> {
    pieces.flat_map(|mut piece| std::iter::from_fn(move || piece.take())).flatten().collect()
}

fn message(pieces: &Pieces) -> Vec<u8> {
    let bytes = bytes_of(pieces.iter().cloned());
    let (prefix, message) = bytes.split_at(5);
    assert_eq!(prefix, [&[0][..], &(message.len() as u32).to_be_bytes()].concat());
    message.to_vec()
}

/// Decodes a message as the service does.
fn decode<T: Message + Default + Send + 'static>(message: &[u8], piece: usize) -> Option<T> {
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    let body = Chunks(framed.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect());
    let decoder = SmallCodec::<T, T>::default().decoder();
    let mut messages = Streaming::<T>::new_request(decoder, body, None, Some(MAX_REQUEST));
    loop {
        match Pin::new(&mut messages).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decoded) => return decoded?.ok(),
            Poll::Pending => {}
        }
    }
}

struct Chunks(VecDeque<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }
}
