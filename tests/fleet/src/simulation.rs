//! The simulation: clients that are woken and answered in the order of virtual time.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use testkit::rng::Rng;

use crate::{
    ca::{Answer, Ca},
    outcome::Outcome,
    time::{Micros, micros, seconds},
};

/// What a client has asked to be woken for; its own to tell apart.
pub type Tag = u8;

/// One sidecar's way to its certificates.
pub trait Client {
    /// It has just been started.
    fn started(&mut self, turn: &mut Turn<'_>);
    /// A wait is over.
    fn woken(&mut self, tag: Tag, turn: &mut Turn<'_>);
    /// The CA has answered its call; there is one at a time.
    fn answered(&mut self, answer: Answer, turn: &mut Turn<'_>);
    /// The trust anchors that the mesh distributes have changed.
    fn roots_changed(&mut self, turn: &mut Turn<'_>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start,
    RootsChange,
    Wake(Tag),
    /// The place of the answer in the list of those to come.
    Answer(u32),
}

type Entry = Reverse<(Micros, u64, u32, u32, Event)>;

/// What happens to all clients from outside, each at a moment of its own within the span.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    /// They are started, or started anew with nothing in hand.
    Start,
    /// They learn that the trust anchors have changed.
    RootsChange,
}

/// A fleet and its CA.
pub struct Simulation<C> {
    make: fn() -> C,
    clients: Vec<C>,
    /// How often each was started: what was planned before is void.
    lives: Vec<u32>,
    world: World,
}

struct World {
    now: Micros,
    entries: BinaryHeap<Entry>,
    order: u64,
    answers: Vec<Answer>,
    unused: Vec<u32>,
    ca: Ca,
    rng: Rng,
    outcome: Outcome,
}

/// What a client may do when it is its turn.
pub struct Turn<'a> {
    world: &'a mut World,
    client: u32,
    life: u32,
}

impl<C: Client> Simulation<C> {
    /// So many clients, none of which is started. `outage` is the span whose calls are counted for each client.
    pub fn new(count: u32, make: fn() -> C, ca: Ca, outage: Option<(Micros, Micros)>, seed: u64) -> Self {
        let world = World {
            now: 0,
            entries: BinaryHeap::new(),
            order: 0,
            answers: Vec::new(),
            unused: Vec::new(),
            ca,
            rng: Rng::new(seed),
            outcome: Outcome::new(count, outage),
        };
        Self { make, clients: (0..count).map(|_| make()).collect(), lives: vec![0; count as usize], world }
    }

    /// Has something happen to every client, at a moment that is uniform in `from..from + within`.
    pub fn happen(&mut self, what: Happening, from: Micros, within: Micros) {
        let event = match what {
            Happening::Start => Event::Start,
            Happening::RootsChange => Event::RootsChange,
        };
        for client in 0..self.clients.len() as u32 {
            let at = from + self.world.rng.below(within.max(1));
            self.world.plan(at, client, 0, event);
        }
    }

    /// Starts one client at a moment.
    pub fn start_at(&mut self, client: u32, at: Micros) {
        self.world.plan(at, client, 0, Event::Start);
    }

    /// Runs until then.
    pub fn run(mut self, until: Micros) -> Outcome {
        while let Some(Reverse((at, _, index, life, event))) = self.world.entries.pop()
            && at <= until
        {
            self.world.now = at;
            let (client, lives) = (&mut self.clients[index as usize], &mut self.lives[index as usize]);
            if event == Event::Start {
                *lives += 1;
                *client = (self.make)();
                self.world.outcome.started(index, at);
            }
            let void = life != *lives;
            let mut turn = Turn { world: &mut self.world, client: index, life: *lives };
            match event {
                Event::Start => client.started(&mut turn),
                Event::RootsChange => client.roots_changed(&mut turn),
                Event::Wake(_) if void => {}
                Event::Wake(tag) => client.woken(tag, &mut turn),
                Event::Answer(place) => {
                    let answer = turn.world.answers[place as usize];
                    turn.world.unused.push(place);
                    if !void {
                        turn.world.outcome.answered(index, at, answer);
                        client.answered(answer, &mut turn);
                    }
                }
            }
        }
        self.world.outcome.end(until);
        self.world.outcome
    }
}

impl World {
    fn plan(&mut self, at: Micros, client: u32, life: u32, event: Event) {
        self.order += 1;
        self.entries.push(Reverse((at, self.order, client, life, event)));
    }
}

impl Turn<'_> {
    /// The wall clock in whole seconds, as the shim reads it.
    pub fn now(&self) -> i64 {
        seconds(self.world.now)
    }

    /// Uniform in 0..1.
    pub fn random(&mut self) -> f64 {
        (self.world.rng.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Has the client woken after a wait.
    pub fn wake_after(&mut self, wait: Duration, tag: Tag) {
        let at = self.world.now.saturating_add(micros(wait));
        self.world.plan(at, self.client, self.life, Event::Wake(tag));
    }

    /// Calls the CA.
    pub fn call(&mut self, deadline: Option<Duration>) {
        let now = self.world.now;
        let (at, answer) = self.world.ca.call(now, deadline.map(micros));
        self.world.outcome.called(self.client, now, answer == Answer::Refused);
        let place = match self.world.unused.pop() {
            Some(place) => {
                self.world.answers[place as usize] = answer;
                place
            }
            None => {
                self.world.answers.push(answer);
                self.world.answers.len() as u32 - 1
            }
        };
        self.world.plan(at, self.client, self.life, Event::Answer(place));
    }
}
