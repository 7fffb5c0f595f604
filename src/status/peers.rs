use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::store::{CERTIFICATE, ROOTS, is_on_demand};

/// Names that are remembered of one stream, each cut to [`NAME`] characters.
const NAMES: usize = 8;
const NAME: usize = 96;
/// Resources and users that are counted by name; others are counted together, so that nobody outside can make more.
const COUNTED: usize = 20;
/// What others are counted as.
const OTHER: &str = "other";

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its process, if the kernel tells.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
}

/// Who is connected to the SDS socket, and what was said there.
#[derive(Clone, Default)]
pub struct Peers(Arc<Mutex<PeersView>>);

/// What was said on the SDS socket.
#[derive(Clone, Debug, Default)]
pub struct PeersView {
    /// Open connections.
    pub connections: usize,
    /// Open streams, by their number.
    pub streams: BTreeMap<u64, StreamFacts>,
    /// What was sent and answered so far, by resource.
    pub resources: BTreeMap<String, ResourceCounts>,
    /// Connections that were refused, by user.
    pub refused: BTreeMap<String, u64>,
    next: u64,
}

/// One stream.
#[derive(Clone, Debug)]
pub struct StreamFacts {
    /// Who opened it.
    pub peer: Peer,
    /// When, Unix seconds.
    pub since: i64,
    /// The call, such as `StreamSecrets`.
    pub call: &'static str,
    /// What it asks for.
    pub resources: Vec<(String, Requested, i64)>,
}

/// What became of a request for one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// It was not answered yet.
    Pending,
    /// It was sent, and the client has not said what it thinks of it.
    Sent,
    /// The client took it (ACK).
    Accepted,
    /// The client refused it (NACK).
    Refused,
}

impl Requested {
    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

/// What was sent and answered of one resource.
#[derive(Clone, Debug, Default)]
pub struct ResourceCounts {
    /// How often it was sent.
    pub pushes: u64,
    /// How often it was accepted.
    pub acks: u64,
    /// How often it was refused.
    pub nacks: u64,
    /// When it was refused last (Unix seconds), and what the client said.
    pub last_nack: Option<(i64, String)>,
}

impl PeersView {
    /// How many streams wait for each resource.
    pub fn pending(&self) -> BTreeMap<&str, u64> {
        let mut pending = BTreeMap::new();
        let names = self.streams.values().flat_map(|stream| &stream.resources);
        for (name, _, _) in names.filter(|(_, state, _)| *state == Requested::Pending) {
            *pending.entry(label(name, &self.resources)).or_default() += 1;
        }
        pending
    }

    fn count(&mut self, name: &str) -> &mut ResourceCounts {
        let label = label(name, &self.resources).to_owned();
        self.resources.entry(label).or_default()
    }
}

/// The name under which a resource is counted.
fn label<'a>(name: &'a str, counted: &BTreeMap<String, ResourceCounts>) -> &'a str {
    let known = name == CERTIFICATE || name == ROOTS || counted.contains_key(name);
    if known || (is_on_demand(name) && counted.len() < COUNTED) { name } else { OTHER }
}

impl Peers {
    /// What was said so far.
    pub fn view(&self) -> PeersView {
        self.lock().clone()
    }

    /// A connection is open for as long as what is returned is held.
    pub fn connected(&self, peer: Peer) -> Client {
        self.lock().connections += 1;
        Client { peers: self.clone(), peer }
    }

    /// A connection of this user was refused.
    pub fn refused(&self, uid: u32) {
        let mut view = self.lock();
        let uid = uid.to_string();
        let known = view.refused.len() < COUNTED || view.refused.contains_key(&uid);
        *view.refused.entry(if known { uid } else { OTHER.to_owned() }).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, PeersView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
pub struct Client {
    peers: Peers,
    peer: Peer,
}

impl Client {
    /// A stream is open on it since `now` (Unix seconds), for as long as what is returned is held.
    pub fn stream(&self, call: &'static str, now: i64) -> StreamHandle {
        let mut view = self.peers.lock();
        let id = view.next;
        view.next += 1;
        view.streams.insert(id, StreamFacts { peer: self.peer, since: now, call, resources: Vec::new() });
        StreamHandle { peers: self.peers.clone(), id }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.peers.lock().connections -= 1;
    }
}

/// Where one stream tells what is said on it.
pub struct StreamHandle {
    peers: Peers,
    id: u64,
}

impl StreamHandle {
    /// The client wants these now.
    pub fn wants<'a>(&self, names: impl Iterator<Item = &'a str>, now: i64) {
        self.with(|stream| {
            let names: Vec<String> = names.take(NAMES).map(shown).collect();
            stream.resources.retain(|(name, _, _)| names.contains(name));
            for name in names {
                if !stream.resources.iter().any(|(known, _, _)| *known == name) {
                    stream.resources.push((name, Requested::Pending, now));
                }
            }
        });
    }

    /// These were sent.
    pub fn sent<'a>(&self, names: impl Iterator<Item = &'a str>, now: i64) {
        for name in names {
            self.peers.lock().count(name).pushes += 1;
            self.set(name, Requested::Sent, now);
        }
    }

    /// The client came with what there is of these, so that nothing is sent.
    pub fn holds(&self, name: &str, now: i64) {
        let name = shown(name);
        self.with(|stream| {
            let waits = |known: &&mut (String, Requested, i64)| known.0 == name && known.1 == Requested::Pending;
            for known in stream.resources.iter_mut().filter(waits) {
                (known.1, known.2) = (Requested::Accepted, now);
            }
        });
    }

    /// The client has answered to these; `refusal` is why it did not take them, if it did not.
    pub fn answered(&self, names: &[String], refusal: Option<&str>, now: i64) {
        for name in names {
            let mut view = self.peers.lock();
            let counts = view.count(name);
            match refusal {
                Some(reason) => {
                    counts.nacks += 1;
                    counts.last_nack = Some((now, reason.to_owned()));
                }
                None => counts.acks += 1,
            }
            drop(view);
            self.set(name, if refusal.is_some() { Requested::Refused } else { Requested::Accepted }, now);
        }
    }

    fn set(&self, name: &str, state: Requested, now: i64) {
        let name = shown(name);
        self.with(|stream| {
            for known in stream.resources.iter_mut().filter(|(known, _, _)| *known == name) {
                (known.1, known.2) = (state, now);
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut StreamFacts)) {
        if let Some(stream) = self.peers.lock().streams.get_mut(&self.id) {
            change(stream);
        }
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.peers.lock().streams.remove(&self.id);
    }
}

fn shown(name: &str) -> String {
    // What is not printable could forge a line of the status.
    name.chars().take(NAME).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_followed_from_the_request_to_its_end() {
        let peers = Peers::default();
        let client = peers.connected(Peer { pid: Some(7), uid: 1337 });
        let stream = client.stream("StreamSecrets", 1);
        stream.wants(["default", "ROOTCA"].into_iter(), 2);
        assert_eq!(peers.view().pending(), BTreeMap::from([("ROOTCA", 1), ("default", 1)]));
        stream.sent(["default"].into_iter(), 3);
        stream.answered(&["default".to_owned()], None, 4);
        stream.sent(["default"].into_iter(), 5);
        stream.answered(&["default".to_owned()], Some("no"), 6);
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
    fn nobody_outside_makes_it_grow() {
        let peers = Peers::default();
        let client = peers.connected(Peer::default());
        let stream = client.stream("StreamSecrets", 1);
        let names: Vec<_> = (0..1000).map(|number| format!("{number}{}", "x".repeat(1000))).collect();
        stream.wants(names.iter().map(String::as_str), 1);
        stream.answered(&names, None, 1);
        (0..1000).for_each(|uid| peers.refused(uid));
        let view = peers.view();
        let resources = &view.streams.values().next().unwrap().resources;
        assert_eq!(resources.len(), NAMES);
        assert!(resources.iter().all(|(name, _, _)| name.len() <= NAME));
        assert_eq!(view.resources.keys().collect::<Vec<_>>(), [OTHER]);
        assert_eq!(view.refused.len(), COUNTED + 1);
        assert_eq!(view.refused.values().sum::<u64>(), 1000);
    }
}
