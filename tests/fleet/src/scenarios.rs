//! What happens to the fleet.

use std::{ops::Range, time::Duration};

use crate::{
    ca::{Ca, Condition, Queue},
    outcome::Outcome,
    simulation::{Client, Happening, Simulation},
    time::{HOUR, MINUTE, Micros, SECOND},
};

/// Of each certificate, unless the scenario says otherwise, and the time after which a fleet has forgotten how it
/// started.
const DAY: Micros = 24 * HOUR;
const WARM: Micros = 2 * DAY;
/// What an answer takes beside the queue: a handshake, a signature, and the way.
const LATENCY: Micros = 20 * SECOND / 1000;
/// Shims for each certificate a second that the CA can issue: 100,000 for 500.
const CLIENTS_PER_RATE: u64 = 200;
/// A fleet that one CA of 500 a second serves in two.
const FEW: u32 = 1000;

/// One scenario, for a fleet of a certain size.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in files.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// How many sidecars.
    pub clients: u32,
    /// What the CA can issue each second.
    pub capacity: u64,
    /// Life of a certificate.
    pub life: Micros,
    /// Whether what is held outlives the outage.
    pub holds: bool,
    /// The span in which the CA fails.
    pub outage: Option<(Micros, Micros)>,
    /// From when to when it is looked at, in seconds.
    pub view: Range<usize>,
    /// Seconds of a bin in the plot.
    pub bin: usize,
    /// By how much smaller the fleet of Istio's agents is simulated, whose calls are then multiplied: they make so many.
    pub peer_share: u32,
    ca: Ca,
    steps: Vec<(Happening, Micros, Micros)>,
    until: Micros,
}

impl Scenario {
    /// Runs it with clients of this kind.
    pub fn run<C: Client + Default>(&self, clients: u32, seed: u64) -> Outcome {
        let share = u64::from(self.clients / clients.max(1)).max(1);
        let ca = if share == 1 { self.ca.clone() } else { self.ca.scaled(share) };
        let mut simulation = Simulation::<C>::new(clients, C::default, ca, self.outage, seed);
        for (what, from, within) in &self.steps {
            simulation.happen(*what, *from, *within);
        }
        simulation.run(self.until)
    }

    fn new(name: &'static str, title: &'static str, clients: u32) -> Self {
        let capacity = (u64::from(clients) / CLIENTS_PER_RATE).max(1);
        Self {
            name,
            title,
            clients,
            capacity,
            life: DAY,
            holds: true,
            outage: None,
            view: 0..0,
            bin: 10,
            peer_share: 10,
            ca: ca(vec![(0, up(capacity))], refusing(capacity, None), DAY),
            steps: Vec::new(),
            until: 0,
        }
    }

    /// A fleet that has run for long before `WARM`.
    fn running(mut self) -> Self {
        self.steps.push((Happening::Start, 0, self.life * 55 / 100));
        self
    }

    fn outage(mut self, from: Micros, to: Micros) -> Self {
        self.outage = Some((from, to));
        self
    }

    fn step(mut self, what: Happening, from: Micros, within: Micros) -> Self {
        self.steps.push((what, from, within));
        self
    }

    fn ca(mut self, conditions: Vec<(Micros, Condition)>, queue: Queue) -> Self {
        self.ca = ca(conditions, queue, self.life);
        self
    }

    fn down_at_first(self, how: Condition, to: Micros) -> Self {
        let (up, queue) = (up(self.capacity), refusing(self.capacity, None));
        Self { holds: false, ..self }
            .outage(0, to)
            .step(Happening::Start, 0, 10 * SECOND)
            .ca(vec![(0, how), (to, up)], queue)
            .seen(to - 5 * MINUTE, to + 15 * MINUTE, 10)
            .until(4 * DAY)
    }

    fn seen(mut self, from: Micros, to: Micros, bin: usize) -> Self {
        (self.view, self.bin) = ((from / SECOND) as usize..(to / SECOND) as usize, bin);
        self.until = self.until.max(to);
        self
    }

    fn until(mut self, until: Micros) -> Self {
        self.until = self.until.max(until);
        self
    }
}

fn ca(conditions: Vec<(Micros, Condition)>, queue: Queue, life: Micros) -> Ca {
    Ca::new(conditions, queue, (life / SECOND) as i64)
}

fn up(per_second: u64) -> Condition {
    Condition::Up { per_second, latency: LATENCY }
}

/// Two seconds' worth may wait.
fn refusing(capacity: u64, asked: Option<Duration>) -> Queue {
    Queue::UpTo { calls: 2 * capacity, asked }
}

/// All of them, for a fleet of this size.
pub fn all(clients: u32) -> Vec<Scenario> {
    let mut all = vec![steady(clients), mass_start(clients), restarted(clients), outage(clients)];
    all.extend([
        started_in_outage(clients),
        started_in_short_outage(clients),
        started_in_half_an_hour(clients),
        few_in_half_an_hour(clients),
        outlived(clients),
        started_before_answers(clients),
        short_lives(clients),
        slow(clients),
        endless_queue(clients),
    ]);
    all.extend([limited(clients, None), limited(clients, Some(Duration::from_secs(30))), roots(clients)]);
    all
}

/// A day of a fleet that has run for long.
pub fn steady(clients: u32) -> Scenario {
    Scenario::new("steady", "a day in steady state", clients).running().seen(WARM, WARM + DAY, 600)
}

/// All start within ten seconds.
pub fn mass_start(clients: u32) -> Scenario {
    Scenario::new("mass-start", "all start within 10 s", clients)
        .step(Happening::Start, 0, 10 * SECOND)
        .seen(0, 10 * MINUTE, 5)
        .until(4 * DAY)
}

/// A fleet that has run for long is restarted within a minute.
pub fn restarted(clients: u32) -> Scenario {
    Scenario::new("restart", "all pods restarted within 60 s", clients)
        .running()
        .step(Happening::Start, WARM, MINUTE)
        .seen(WARM - MINUTE, WARM + 10 * MINUTE, 5)
        .until(WARM + DAY)
}

/// The CA refuses connections for an hour, certificates live for a day.
pub fn outage(clients: u32) -> Scenario {
    let (from, to) = (WARM, WARM + HOUR);
    let scenario = Scenario::new("outage", "the CA is away for 1 h", clients).running().outage(from, to);
    let up = up(scenario.capacity);
    let queue = refusing(scenario.capacity, None);
    scenario
        .ca(vec![(0, up), (from, Condition::Away), (to, up)], queue)
        .seen(from - 10 * MINUTE, to + 30 * MINUTE, 30)
        .until(to + 6 * HOUR)
}

/// Everybody waits for the CA: it refused connections when they started, and does for an hour.
pub fn started_in_outage(clients: u32) -> Scenario {
    let scenario = Scenario::new("start-in-outage", "all start while the CA is away for 1 h", clients);
    Scenario { peer_share: 100, ..scenario }.down_at_first(Condition::Away, HOUR)
}

/// The same for so short a time that the waits have not grown to their longest.
pub fn started_in_short_outage(clients: u32) -> Scenario {
    let scenario = Scenario::new("start-in-short-outage", "all start while the CA is away for 5 min", clients);
    scenario.down_at_first(Condition::Away, 5 * MINUTE)
}

/// The same for as long as every sidecar looks for the CA every few seconds.
pub fn started_in_half_an_hour(clients: u32) -> Scenario {
    let scenario = Scenario::new("start-in-half-an-hour", "all start while the CA is away for 30 min", clients);
    Scenario { peer_share: 100, ..scenario }.down_at_first(Condition::Away, 30 * MINUTE)
}

/// The same with as many as one CA serves in two seconds.
pub fn few_in_half_an_hour(clients: u32) -> Scenario {
    let few = clients.min(FEW);
    let scenario = Scenario::new("few", "1,000 start while the CA is away for 30 min; it issues 500/s", few);
    Scenario { peer_share: 1, capacity: u64::from(FEW) / 2, ..scenario }.down_at_first(Condition::Away, 30 * MINUTE)
}

/// Certificates live for ten minutes, and the CA is away for half an hour: all of them end.
pub fn outlived(clients: u32) -> Scenario {
    let (from, to) = (HOUR, HOUR + 30 * MINUTE);
    let scenario = Scenario::new("outlived", "certificates of 10 min, the CA is away for 30 min", clients);
    let (up, queue) = (up(scenario.capacity), refusing(scenario.capacity, None));
    Scenario { life: 10 * MINUTE, holds: false, peer_share: 100, ..scenario }
        .running()
        .outage(from, to)
        .ca(vec![(0, up), (from, Condition::Away), (to, up)], queue)
        .seen(from - 5 * MINUTE, to + 20 * MINUTE, 10)
        .until(to + 3 * HOUR)
}

/// Everybody waits for a CA that answers with errors for an hour.
pub fn started_before_answers(clients: u32) -> Scenario {
    let title = "all start while the CA answers UNAVAILABLE for 1 h";
    let scenario = Scenario::new("start-before-answers", title, clients);
    Scenario { peer_share: 100, ..scenario }.down_at_first(Condition::Down, HOUR)
}

/// Certificates live for an hour, and the CA answers with errors for twenty minutes: less than what is left at any renewal.
pub fn short_lives(clients: u32) -> Scenario {
    let (from, to) = (3 * HOUR, 3 * HOUR + 20 * MINUTE);
    let mut scenario =
        Scenario::new("short-lives", "certificates of 1 h, the CA answers UNAVAILABLE for 20 min", clients);
    scenario.life = HOUR;
    let (up, queue) = (up(scenario.capacity), refusing(scenario.capacity, None));
    scenario
        .running()
        .outage(from, to)
        .ca(vec![(0, up), (from, Condition::Down), (to, up)], queue)
        .seen(from - 5 * MINUTE, to + 20 * MINUTE, 10)
        .until(to + 2 * HOUR)
}

/// For an hour every answer takes longer than a shim waits.
pub fn slow(clients: u32) -> Scenario {
    let (from, to) = (WARM, WARM + HOUR);
    let scenario = Scenario::new("slow", "every answer takes 75 s for 1 h", clients).running().outage(from, to);
    let up = up(scenario.capacity);
    let slow = Condition::Up { per_second: scenario.capacity, latency: 75 * SECOND };
    scenario
        .ca(vec![(0, up), (from, slow), (to, up)], Queue::Endless)
        .seen(from - 10 * MINUTE, to + 30 * MINUTE, 30)
        .until(to + 6 * HOUR)
}

/// All start within ten seconds, and the CA refuses nobody: it works on calls whose clients have given up.
pub fn endless_queue(clients: u32) -> Scenario {
    let scenario = mass_start(clients);
    let up = up(scenario.capacity);
    Scenario { name: "endless-queue", title: "all start within 10 s, the CA refuses nobody", ..scenario }
        .ca(vec![(0, up)], Queue::Endless)
        .seen(0, 30 * MINUTE, 10)
}

/// All start within ten seconds, and the CA issues a fifth of what it otherwise would and refuses the rest.
pub fn limited(clients: u32, asked: Option<Duration>) -> Scenario {
    let scenario = mass_start(clients);
    let limit = (scenario.capacity / 5).max(1);
    let (name, title) = match asked {
        None => ("limited", "all start, the CA issues 100/s at the most"),
        Some(_) => ("limited-retry-info", "all start, the CA issues 100/s at the most and asks to wait 30 s"),
    };
    Scenario { name, title, capacity: limit, ..scenario }.ca(vec![(0, up(limit))], refusing(limit, asked)).seen(
        0,
        40 * MINUTE,
        10,
    )
}

/// The mesh gets new trust anchors, which reach everybody within ten seconds.
pub fn roots(clients: u32) -> Scenario {
    Scenario::new("roots", "new trust anchors for the mesh", clients)
        .running()
        .step(Happening::RootsChange, WARM, 10 * SECOND)
        .seen(WARM - 5 * MINUTE, WARM + 10 * MINUTE, 5)
        .until(WARM + DAY)
}
