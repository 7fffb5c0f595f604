use super::*;
use crate::{
    identity::TrustBundle,
    sds::Names,
    store::{Content, Encoded, Piece, SecretStore, Validation, View},
};
use bytes::Bytes;

const NOW: i64 = 1000;

fn resource() -> Encoded {
    Encoded::public(vec![Piece::Bytes(Bytes::from_static(b"resource"))])
}

/// Something that is told apart by this text.
fn content_of(text: &str) -> Content {
    let domains = vec![(text.to_owned(), TrustBundle::default())];
    Content::ValidationContext(Validation { domains, ..Validation::default() })
}

/// A snapshot with one secret for each `(name, content)`.
fn snapshot(secrets: &[(&'static str, &str)]) -> Snapshot {
    let store = SecretStore::new(|_, _| resource());
    store.publish(secrets.iter().map(|(name, content)| (*name, content_of(content), NOW + 1)));
    let View::Open(snapshot) = store.view().borrow().clone() else { unreachable!("nothing ended the store") };
    snapshot
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        type_url: SECRET_TYPE_URL.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn nack(names: &[&str], nonce: &str, message: &str) -> DiscoveryRequest {
    let error = Status { code: 3, message: message.to_owned() };
    DiscoveryRequest { error_detail: Some(error), ..request(names, nonce) }
}

fn delta(subscribe: &[&str], unsubscribe: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn sent(outcome: &Outcome) -> Vec<&str> {
    outcome.send.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_first_request_is_answered_whatever_it_carries() {
    let held = snapshot(&[("default", "a"), ("ROOTCA", "r")]);
    for nonce in ["", "1-1", "from another server"] {
        let mut stream = Subscription::new(1);
        let mut first = request(&["default"], nonce);
        first.version_info = "old".to_owned();
        let outcome = stream.request(&first, &held, NOW).unwrap();
        assert_eq!(sent(&outcome), ["default"], "{nonce}");
        assert!(outcome.verdict.is_none());
    }
}

#[test]
fn acks_and_stale_nonces_are_not_answered() {
    let held = snapshot(&[("default", "a")]);
    let mut stream = Subscription::new(1);
    stream.request(&request(&["default"], ""), &held, NOW).unwrap();
    let ack = stream.request(&request(&["default"], &stream.nonce()), &held, NOW).unwrap();
    assert!(!ack.is_response());
    assert_eq!(ack.verdict, Some((Verdict::Ack, vec!["default".to_owned()])));
    let again = stream.request(&request(&["default"], &stream.nonce()), &held, NOW).unwrap();
    assert!(!again.is_response() && again.verdict.is_none(), "a response is answered once");
    let stale = stream.request(&request(&["default", "ROOTCA"], "1-0"), &held, NOW).unwrap();
    assert!(!stale.is_response() && stale.verdict.is_none());
    assert_eq!(stream.pending(&held).count(), 0, "names of a stale request are not taken");
}

#[test]
fn a_nack_is_recorded_and_nothing_is_sent_until_the_content_changes() {
    let held = snapshot(&[("default", "a")]);
    let mut stream = Subscription::new(1);
    stream.request(&request(&["default"], ""), &held, NOW).unwrap();
    let outcome = stream.request(&nack(&["default"], &stream.nonce(), "bad cert"), &held, NOW).unwrap();
    assert!(!outcome.is_response());
    assert_eq!(outcome.verdict, Some((Verdict::Nack("bad cert".to_owned()), vec!["default".to_owned()])));
    assert!(!stream.changed(&held, NOW).is_response());
    assert_eq!(sent(&stream.changed(&snapshot(&[("default", "b")]), NOW)), ["default"]);
}

#[test]
fn each_response_in_flight_gets_its_verdict() {
    let names = vec!["default".to_owned()];
    for incremental in [false, true] {
        let mut stream = Subscription::new(1);
        let say = |stream: &mut Subscription, wanted: &[&str], nonce: &str, error: Option<&str>, held: &Snapshot| {
            let error_detail = error.map(|message| Status { code: 3, message: message.to_owned() });
            match incremental {
                true => stream
                    .delta_request(&DeltaDiscoveryRequest { error_detail, ..delta(&[], &[], nonce) }, held, NOW)
                    .unwrap(),
                false => {
                    stream.request(&DiscoveryRequest { error_detail, ..request(wanted, nonce) }, held, NOW).unwrap()
                }
            }
        };
        let (a, b) = (snapshot(&[("default", "a")]), snapshot(&[("default", "b")]));
        if incremental {
            stream.delta_request(&delta(&["default"], &[], ""), &a, NOW).unwrap();
        } else {
            stream.request(&request(&["default"], ""), &a, NOW).unwrap();
        }
        let first = stream.nonce();
        assert_eq!(sent(&stream.changed(&b, NOW)), ["default"]);
        let second = stream.nonce();
        let outcome = say(&mut stream, &[], &first, Some("no"), &b);
        assert_eq!(outcome.verdict, Some((Verdict::Nack("no".to_owned()), names.clone())));
        assert!(!outcome.is_response());
        assert_eq!(stream.answered("default"), Some(None), "the version that it holds now has no answer yet");
        let outcome = say(&mut stream, &["default"], &second, None, &b);
        assert_eq!(outcome.verdict, Some((Verdict::Ack, names.clone())));
        assert_eq!(stream.answered("default"), Some(Some(b["default"].version())));
        assert!(say(&mut stream, &["default"], &first, Some("late"), &b).verdict.is_none(), "out of order");
    }
}

#[test]
fn only_so_many_responses_are_remembered() {
    let mut stream = Subscription::new(1);
    stream.request(&request(&["default"], ""), &snapshot(&[("default", "0")]), NOW).unwrap();
    let oldest = stream.nonce();
    let mut held = snapshot(&[]);
    for content in 1..=IN_FLIGHT {
        held = snapshot(&[("default", &content.to_string())]);
        stream.changed(&held, NOW);
    }
    assert!(stream.request(&nack(&["default"], &oldest, "no"), &held, NOW).unwrap().verdict.is_none());
}

#[test]
fn changed_names_are_honoured_also_in_a_nack() {
    let held = snapshot(&[("default", "a"), ("ROOTCA", "r")]);
    let mut stream = Subscription::new(1);
    stream.request(&request(&["default"], ""), &held, NOW).unwrap();
    let outcome = stream.request(&nack(&["default", "ROOTCA"], &stream.nonce(), "no"), &held, NOW).unwrap();
    assert_eq!(sent(&outcome), ["ROOTCA"]);
    let outcome = stream.request(&request(&["ROOTCA"], &stream.nonce()), &held, NOW).unwrap();
    assert!(!outcome.is_response());
    assert!(!stream.changed(&snapshot(&[("default", "b"), ("ROOTCA", "r")]), NOW).is_response(), "unsubscribed");
}

#[test]
fn missing_resources_follow_later_on_the_same_stream() {
    let mut stream = Subscription::new(1);
    let outcome = stream.request(&request(&["default", "ROOTCA", "x"], ""), &snapshot(&[]), NOW).unwrap();
    assert!(!outcome.is_response());
    let roots = snapshot(&[("ROOTCA", "r")]);
    assert_eq!(sent(&stream.changed(&roots, NOW)), ["ROOTCA"]);
    assert_eq!(stream.pending(&roots).collect::<Vec<_>>(), ["default", "x"]);
    assert_eq!(sent(&stream.changed(&snapshot(&[("ROOTCA", "r"), ("default", "a")]), NOW)), ["default"]);
}

#[test]
fn an_expired_secret_is_neither_sent_nor_taken_away() {
    let held = snapshot(&[("default", "a")]);
    let (mut open, mut new) = (Subscription::new(1), Subscription::new(2));
    let first = delta(&["default"], &[], "");
    assert_eq!(sent(&open.delta_request(&first, &held, NOW).unwrap()), ["default"]);
    assert!(!open.changed(&held, NOW + 1).is_response());
    assert!(!new.delta_request(&first, &held, NOW + 1).unwrap().is_response());
    assert_eq!(sent(&new.changed(&snapshot(&[("default", "b")]), NOW)), ["default"]);
}

#[test]
fn an_empty_nonce_within_a_stream_is_a_new_request() {
    let held = snapshot(&[("default", "a")]);
    let mut stream = Subscription::new(1);
    stream.request(&request(&["default"], ""), &held, NOW).unwrap();
    assert_eq!(sent(&stream.request(&request(&["default"], ""), &held, NOW).unwrap()), ["default"]);
}

#[test]
fn nonces_differ_between_responses_and_streams() {
    let held = snapshot(&[("default", "a")]);
    let (mut one, mut two) = (Subscription::new(1), Subscription::new(2));
    one.request(&request(&["default"], ""), &held, NOW).unwrap();
    two.request(&request(&["default"], ""), &held, NOW).unwrap();
    assert_ne!(one.nonce(), two.nonce());
    let before = one.nonce();
    one.changed(&snapshot(&[("default", "b")]), NOW);
    assert_ne!(one.nonce(), before);
}

#[test]
fn delta_does_not_resend_what_the_client_holds_after_a_reconnect() {
    let held = snapshot(&[("default", "a"), ("ROOTCA", "r")]);
    let mut first = delta(&["default", "ROOTCA"], &[], "");
    first.initial_resource_versions.insert("ROOTCA".to_owned(), held["ROOTCA"].version().to_owned());
    first.initial_resource_versions.insert("default".to_owned(), "old".to_owned());
    let outcome = Subscription::new(1).delta_request(&first, &held, NOW).unwrap();
    assert_eq!(sent(&outcome), ["default"]);
}

#[test]
fn delta_subscribes_resends_and_unsubscribes() {
    let held = snapshot(&[("default", "a"), ("ROOTCA", "r")]);
    let mut stream = Subscription::new(1);
    assert_eq!(sent(&stream.delta_request(&delta(&["default"], &[], ""), &held, NOW).unwrap()), ["default"]);
    let again = stream.delta_request(&delta(&["default"], &[], ""), &held, NOW).unwrap();
    assert_eq!(sent(&again), ["default"], "named again, it is wanted again");
    let stale = stream.delta_request(&delta(&["ROOTCA"], &["default"], "1-1"), &held, NOW).unwrap();
    assert_eq!(sent(&stale), ["ROOTCA"], "changes of names count whatever the nonce");
    assert!(!stream.changed(&snapshot(&[("default", "b"), ("ROOTCA", "r")]), NOW).is_response());
}

#[test]
fn delta_tells_removals_only_of_what_was_there() {
    let mut stream = Subscription::new(1);
    let mut first = delta(&["default"], &[], "");
    first.initial_resource_versions.insert("default".to_owned(), "from before a restart".to_owned());
    assert!(!stream.delta_request(&first, &snapshot(&[]), NOW).unwrap().is_response());
    assert_eq!(sent(&stream.changed(&snapshot(&[("default", "a")]), NOW)), ["default"]);
    assert_eq!(stream.changed(&snapshot(&[]), NOW).removed, ["default"]);
    assert!(!stream.changed(&snapshot(&[]), NOW).is_response());
    assert_eq!(sent(&stream.changed(&snapshot(&[("default", "a")]), NOW)), ["default"]);
}

#[test]
fn names_beyond_the_limits_are_left_out_and_the_others_served() {
    let held = snapshot(&[("default", "a")]);
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let with_default: Vec<&str> = many.iter().copied().chain(["default"]).collect();
    for (names, kept, why) in [
        (&with_default[..], MAX_NAMES, "its stream already has 64 names, the limit"),
        (&[&long, "default"], 1, "the name has 8209 bytes; the limit is 8208"),
    ] {
        let mut stream = Subscription::new(1);
        let outcome = stream.request(&request(names, ""), &held, NOW).unwrap();
        assert_eq!((sent(&outcome), stream.names().count()), (vec!["default"], kept));
        let (name, told) = outcome.left_out.unwrap();
        assert_eq!((name.len() <= ERROR_TEXT, told.as_str()), (true, why));
    }
    let mut stream = Subscription::new(1);
    stream.delta_request(&delta(&many[..MAX_NAMES], &[], ""), &held, NOW).unwrap();
    let again = stream.delta_request(&delta(&[many[0]], &[], ""), &held, NOW).unwrap();
    assert_eq!(again.left_out, None, "it has that one already");
    let more = stream.delta_request(&delta(&["one more"], &[], ""), &held, NOW).unwrap();
    assert_eq!((more.left_out.unwrap().0.as_str(), stream.names().count()), ("one more", MAX_NAMES));
    let other = stream.delta_request(&delta(&["one more"], &[many[0]], ""), &held, NOW).unwrap();
    assert_eq!((other.left_out, stream.names().count()), (None, MAX_NAMES));
}

#[test]
fn requests_for_something_else_are_refused() {
    let mut foreign = request(&["default"], "");
    foreign.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let refused = Subscription::new(1).request(&foreign, &snapshot(&[]), NOW).unwrap_err();
    assert_eq!(refused, ProtocolError::TypeUrl(foreign.type_url));
}

#[test]
fn setting_the_clock_back_restores_what_seemed_expired() {
    const YEAR: i64 = 31_536_000;
    let store = SecretStore::new(|_, _| resource());
    store.publish([("default", content_of("a"), NOW + 1)]);
    let mut consumer = store.consumer();
    let View::Open(held) = consumer.views.borrow_and_update().clone() else { unreachable!("nothing ended the store") };
    let (mut before, mut whole, mut incremental) = (Subscription::new(1), Subscription::new(2), Subscription::new(3));
    assert_eq!(sent(&before.request(&request(&["default"], ""), &held, NOW).unwrap()), ["default"]);
    // The clock is a year ahead.
    assert!(!whole.request(&request(&["default"], ""), &held, NOW + YEAR).unwrap().is_response());
    assert!(!incremental.delta_request(&delta(&["default"], &[], ""), &held, NOW + YEAR).unwrap().is_response());
    assert!(!consumer.views.has_changed().unwrap());
    // It is set back, which nobody else would tell the streams.
    store.look_again();
    assert!(consumer.views.has_changed().unwrap());
    let View::Open(held) = consumer.views.borrow_and_update().clone() else { unreachable!("nothing ended the store") };
    assert_eq!(sent(&whole.changed(&held, NOW)), ["default"]);
    assert_eq!(sent(&incremental.changed(&held, NOW)), ["default"]);
    assert!(!before.changed(&held, NOW).is_response(), "it has it already");
    store.look_again();
    assert!(!whole.changed(&held, NOW).is_response(), "once is enough");
}

/// What somebody serves who has names that begin so, and nothing else.
struct Prefix(&'static str);

impl Names for Prefix {
    fn is_known(&self, name: &str) -> bool {
        name.starts_with(self.0)
    }

    fn is_file(&self, _: &str) -> bool {
        true
    }

    fn is_open(&self, name: &str) -> bool {
        name.ends_with("open")
    }
}

#[test]
fn delta_removes_impossible_names_at_once_and_forgets_them() {
    let held = snapshot(&[("a-open", "a")]);
    let names: Arc<dyn Names> = Arc::new(Prefix("a-"));
    let mut stream = Subscription::new(1).of(Rights::new(Arc::clone(&names), None));
    for nonce in ["", "1-0", "elsewhere"] {
        let outcome = stream.delta_request(&delta(&["b", "a-open", "a-later"], &[], nonce), &held, NOW).unwrap();
        assert_eq!((sent(&outcome), &outcome.removed[..]), (vec!["a-open"], &["b".to_owned()][..]));
        assert_eq!(stream.names().collect::<Vec<_>>(), ["a-later", "a-open"]);
    }
    let ack = stream.delta_request(&delta(&[], &[], &stream.nonce()), &held, NOW).unwrap();
    assert_eq!((ack.is_response(), ack.verdict), (false, Some((Verdict::Ack, vec!["a-open".to_owned()]))));
    // An answer of removals alone has its nonce and its verdict as any other.
    let outcome = stream.delta_request(&delta(&["b", "*"], &[], ""), &held, NOW).unwrap();
    assert_eq!((sent(&outcome).len(), &outcome.removed[..]), (0, &["b".to_owned()][..]));
    let ack = stream.delta_request(&delta(&[], &[], &stream.nonce()), &held, NOW).unwrap();
    assert_eq!((ack.is_response(), ack.verdict), (false, Some((Verdict::Ack, Vec::new()))));
    // Never more of them than there can be names, and none that is too long.
    let (long, many): (String, Vec<_>) = ("x".repeat(MAX_NAME_BYTES + 1), (0..200).map(|at| at.to_string()).collect());
    let many: Vec<_> = many.iter().map(String::as_str).chain([long.as_str()]).collect();
    assert_eq!(stream.delta_request(&delta(&many, &[], ""), &held, NOW).unwrap().removed.len(), MAX_NAMES);
    assert!(!stream.delta_request(&delta(&[&long], &[], ""), &held, NOW).unwrap().is_response());
    // Others may have less.
    let mut other = Subscription::new(2).of(Rights::new(names, Some(7)));
    let outcome = other.delta_request(&delta(&["a-open", "a-later"], &[], ""), &held, NOW).unwrap();
    assert_eq!((sent(&outcome), &outcome.removed[..]), (vec!["a-open"], &["a-later".to_owned()][..]));
    // The state of the world has no word for it.
    let mut stream = Subscription::new(3).of(Rights::new(Arc::new(Prefix("a-")), None));
    assert!(!stream.request(&request(&["b"], ""), &held, NOW).unwrap().is_response());
}
