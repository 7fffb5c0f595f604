use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

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
pub struct Peers {
    view: Arc<Mutex<PeersView>>,
    /// Told when somebody may have become or ceased to be without a secret.
    changes: watch::Sender<()>,
}

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
    /// Whether some request may be [`Requested::Blocked`]: few ever are, and nobody looks through all streams for none.
    blocked: bool,
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
    /// The client cannot use it for now, because of another one that it has refused.
    Blocked,
}

impl Requested {
    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Blocked => "blocked",
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
    /// The stream of a client that has refused it and holds none, as long as nobody has taken it since.
    without: Option<u64>,
}

/// What a client has refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// What it was sent.
    pub sent: &'a [String],
    /// What its reason is about.
    pub about: &'a [String],
    /// Its reason.
    pub reason: &'a str,
    /// Whether it still has what it was sent before.
    pub holds: bool,
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

    /// A client has taken something: what it could not use because of a refusal it can use, once none of that is left.
    fn unblock(&mut self, peer: Peer, now: i64) {
        let own = |stream: &&mut StreamFacts| stream.peer == peer;
        let mut own: Vec<_> = self.streams.values_mut().filter(own).collect();
        let mut resources = own.iter().flat_map(|stream| &stream.resources);
        if !resources.any(|(_, state, _)| *state == Requested::Refused) {
            for known in own.iter_mut().flat_map(|stream| &mut stream.resources) {
                if known.1 == Requested::Blocked {
                    (known.1, known.2) = (Requested::Accepted, now);
                }
            }
        }
        let mut resources = self.streams.values().flat_map(|stream| &stream.resources);
        self.blocked = resources.any(|(_, state, _)| *state == Requested::Blocked);
    }

    /// Of what was sent: nobody outside has thought of its name.
    fn count_sent(&mut self, name: &str) -> &mut ResourceCounts {
        if self.resources.len() < COUNTED && !self.resources.contains_key(name) {
            self.resources.insert(name.to_owned(), ResourceCounts::default());
        }
        self.count(name)
    }

    fn count(&mut self, name: &str) -> &mut ResourceCounts {
        let label = label(name, &self.resources).to_owned();
        self.resources.entry(label).or_default()
    }
}

impl StreamFacts {
    /// What became of requests for these.
    fn set(&mut self, names: &[impl AsRef<str>], state: Requested, now: i64) {
        let names: Vec<_> = names.iter().map(|name| shown(name.as_ref())).collect();
        for known in self.resources.iter_mut().filter(|(known, _, _)| names.contains(known)) {
            (known.1, known.2) = (state, now);
        }
    }

    fn is(&self, name: &str, state: Requested) -> bool {
        self.resources.iter().any(|(known, found, _)| known == name && *found == state)
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

    /// When a resource was refused (Unix seconds) and why, if it is such that whoever refused it has none.
    pub fn refusal(&self, resource: &str) -> Option<(i64, String)> {
        let view = self.lock();
        view.resources.get(resource).filter(|counts| counts.without.is_some())?.last_nack.clone()
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

    pub(super) fn new(changes: watch::Sender<()>) -> Self {
        Self { changes, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, PeersView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut view = self.peers.lock();
        let names: Vec<_> = names.collect();
        for name in &names {
            view.count_sent(name).pushes += 1;
        }
        if let Some(stream) = view.streams.get_mut(&self.id) {
            stream.set(&names, Requested::Sent, now);
        }
    }

    /// The client came with what there is of these, so that nothing is sent.
    pub fn holds(&self, name: &str, now: i64) {
        let mut view = self.peers.lock();
        let peer = |id| view.streams.get(&id).map(|stream| stream.peer);
        // It takes what it gets first, and only then finds that it cannot use it.
        let without = view.resources.get(name).and_then(|counts| counts.without);
        let refused = without.is_some_and(|id| peer(id).is_some() && peer(id) == peer(self.id));
        let state = if refused { Requested::Refused } else { Requested::Accepted };
        let name = shown(name);
        let Some(stream) = view.streams.get_mut(&self.id) else { return };
        let waits = |known: &&mut (String, Requested, i64)| known.0 == name && known.1 == Requested::Pending;
        for known in stream.resources.iter_mut().filter(waits) {
            (known.1, known.2) = (state, now);
        }
    }

    /// The client has taken these.
    pub fn accepted(&self, names: &[String], now: i64) {
        let mut view = self.peers.lock();
        let mut changed = false;
        for name in names {
            let counts = view.count(name);
            counts.acks += 1;
            changed |= counts.without.take().is_some();
        }
        // Who takes one has what else that needs.
        for counts in view.resources.values_mut().filter(|counts| counts.without == Some(self.id)) {
            (counts.without, changed) = (None, true);
        }
        let Some(stream) = view.streams.get_mut(&self.id) else { return };
        stream.set(names, Requested::Accepted, now);
        // What the reason of a refusal was about stands on another stream, where nothing comes of it any more.
        let peer = stream.peer;
        if view.blocked {
            view.unblock(peer, now);
        }
        drop(view);
        if changed {
            self.peers.changes.send_replace(());
        }
    }

    /// The client has refused something.
    pub fn refused(&self, Refusal { sent, about, reason, holds }: Refusal<'_>, now: i64) {
        let mut view = self.peers.lock();
        let Some(peer) = view.streams.get(&self.id).map(|stream| stream.peer) else { return };
        let foreign = |name: &String| !sent.contains(name);
        for name in about {
            // Whoever takes one and refuses another because of it has not taken it.
            let took = |id: u64, stream: &StreamFacts| match foreign(name) {
                true => stream.peer != peer,
                false => id != self.id,
            };
            let holds =
                holds || view.streams.iter().any(|(id, one)| took(*id, one) && one.is(name, Requested::Accepted));
            let counts = view.count(name);
            counts.nacks += 1;
            counts.last_nack = Some((now, reason.to_owned()));
            counts.without = if holds { counts.without } else { Some(self.id) };
        }
        let blocked: Vec<_> = sent.iter().filter(|name| !about.contains(name)).cloned().collect();
        let elsewhere = about.iter().all(foreign);
        view.blocked |= !blocked.is_empty();
        for (id, stream) in &mut view.streams {
            if *id == self.id {
                stream.set(&blocked, Requested::Blocked, now);
            }
            if *id == self.id || (elsewhere && stream.peer == peer) {
                stream.set(about, Requested::Refused, now);
            }
        }
        drop(view);
        self.peers.changes.send_replace(());
    }

    /// What this client asks for on all its streams.
    pub fn all_names(&self) -> Vec<String> {
        let view = self.peers.lock();
        let Some(peer) = view.streams.get(&self.id).map(|stream| stream.peer) else { return Vec::new() };
        let own = view.streams.values().filter(|stream| stream.peer == peer);
        let mut names: Vec<_> = own.flat_map(|stream| &stream.resources).map(|(name, _, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn with(&self, change: impl FnOnce(&mut StreamFacts)) {
        if let Some(stream) = self.peers.lock().streams.get_mut(&self.id) {
            change(stream);
        }
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let mut view = self.peers.lock();
        view.streams.remove(&self.id);
        // Who is gone needs nothing, if there is somebody else who has it.
        let PeersView { streams, resources, .. } = &mut *view;
        let mut changed = false;
        for (name, counts) in resources.iter_mut().filter(|(_, counts)| counts.without == Some(self.id)) {
            if streams.values().any(|stream| stream.is(name, Requested::Accepted)) {
                (counts.without, changed) = (None, true);
            }
        }
        drop(view);
        if changed {
            self.peers.changes.send_replace(());
        }
    }
}

fn shown(name: &str) -> String {
    // What is not printable could forge a line of the status.
    name.chars().take(NAME).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
