use super::*;

#[test]
fn a_stream_is_followed_from_the_request_to_its_end() {
    let peers = Peers::default();
    let client = peers.connected(Peer { pid: Some(7), uid: 1337 });
    let stream = client.stream("StreamSecrets", 1);
    stream.wants(["default", "ROOTCA"].into_iter(), 2);
    assert_eq!(peers.view().pending(), BTreeMap::from([("ROOTCA", 1), ("default", 1)]));
    stream.sent(["default"].into_iter(), 3);
    let names = ["default".to_owned()];
    stream.accepted(&names, 4);
    stream.sent(["default"].into_iter(), 5);
    stream.refused(Refusal { sent: &names, about: &names, reason: "no", holds: true }, 6);
    let view = peers.view();
    assert_eq!(view.pending(), BTreeMap::from([("ROOTCA", 1)]));
    let counts = &view.resources["default"];
    assert_eq!((counts.pushes, counts.acks, counts.nacks), (2, 1, 1));
    assert_eq!(counts.last_nack, Some((6, "no".to_owned())));
    let facts = view.streams.values().next().unwrap();
    assert_eq!(facts.resources[0], ("default".to_owned(), Requested::Refused, 6));
    drop((stream, client));
    assert!(peers.view().streams.is_empty() && peers.view().connections == 0);
}

#[test]
fn a_rejection_is_recorded_for_its_resource() {
    let peers = Peers::default();
    let client = peers.connected(Peer { pid: Some(7), uid: 1337 });
    let names = |name: &str| [name.to_owned()];
    let (roots, certificate) = (client.stream("DeltaSecrets", 1), client.stream("DeltaSecrets", 1));
    let states = || {
        let streams = peers.view().streams;
        streams.values().flat_map(|stream| &stream.resources).map(|(_, state, _)| *state).collect::<Vec<_>>()
    };
    roots.wants(["ROOTCA"].into_iter(), 1);
    let (sent, about) = (&names("ROOTCA"), &names("default"));
    roots.refused(Refusal { sent, about, reason: "no", holds: false }, 2);
    assert_eq!(peers.refusal("default"), Some((2, "no".to_owned())));
    assert_eq!(peers.refusal("ROOTCA"), None);
    // It comes with the one that it cannot use.
    certificate.wants(["default"].into_iter(), 3);
    certificate.holds("default", 3);
    assert_eq!(states(), [Requested::Blocked, Requested::Refused]);
    certificate.accepted(&names("default"), 4);
    assert_eq!((states(), peers.refusal("default")), (vec![Requested::Accepted; 2], None));
    // Somebody else has none, and goes.
    let other = peers.connected(Peer { pid: Some(8), uid: 1337 });
    let stream = other.stream("StreamSecrets", 5);
    stream.refused(Refusal { sent: about, about, reason: "no", holds: false }, 5);
    assert_eq!(peers.refusal("default"), None, "somebody has it");
    drop(certificate);
    stream.refused(Refusal { sent: about, about, reason: "no", holds: false }, 6);
    assert!(peers.refusal("default").is_some());
    let next = other.stream("StreamSecrets", 7);
    next.accepted(&names("default"), 7);
    assert_eq!(peers.refusal("default"), None);
}

#[test]
fn clients_cannot_make_it_grow() {
    let peers = Peers::default();
    let client = peers.connected(Peer::default());
    let stream = client.stream("StreamSecrets", 1);
    let names: Vec<_> = (0..1000).map(|number| format!("{number}{}", "x".repeat(1000))).collect();
    stream.wants(names.iter().map(String::as_str), 1);
    stream.accepted(&names, 1);
    (0..1000).for_each(|uid| peers.refused(uid));
    let view = peers.view();
    let resources = &view.streams.values().next().unwrap().resources;
    assert_eq!(resources.len(), NAMES);
    assert!(resources.iter().all(|(name, _, _)| name.len() <= NAME));
    assert_eq!(view.resources.keys().collect::<Vec<_>>(), [OTHER]);
    assert_eq!(view.refused.len(), COUNTED + 1);
    assert_eq!(view.refused.values().sum::<u64>(), 1000);
}

#[test]
fn an_answer_costs_the_same_however_many_streams_there_are() {
    let a_stream_s_share = |streams: u32| {
        let peers = Peers::default();
        let client = peers.connected(Peer { pid: Some(7), uid: 1337 });
        let handles: Vec<_> = (0..streams).map(|_| client.stream("StreamSecrets", 1)).collect();
        let names = ["default".to_owned()];
        let cpu = || std::time::Duration::from(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
        let before = cpu();
        for stream in &handles {
            stream.wants(["default"].into_iter(), 2);
            stream.sent(["default"].into_iter(), 3);
            stream.accepted(&names, 4);
        }
        (cpu() - before) / streams
    };
    // The least of several: others use the same processor.
    let least = |streams| (0..3).map(|_| a_stream_s_share(streams)).min().unwrap();
    let (few, many) = (least(100), least(10_000));
    assert!(many < few * 10, "{few:?} of processor time with 100 streams, {many:?} with 10,000");
}
