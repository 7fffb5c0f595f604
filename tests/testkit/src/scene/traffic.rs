//! A steady stream of requests from every client to every server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::mesh::{Mesh, Sidecar};
use crate::{Failure, http::Connection};

/// Pause between two requests of one client to one server.
const PERIOD: Duration = Duration::from_millis(20);

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were answered with 200.
    pub answered: u64,
    /// What happened instead, each in words.
    pub failures: Vec<String>,
}

/// A running stream.
pub struct Traffic {
    stop: watch::Sender<bool>,
    pairs: JoinSet<()>,
    tallies: Vec<Arc<Mutex<Tally>>>,
}

impl Traffic {
    /// From every client to every server.
    pub async fn start(mesh: &Mesh) -> Result<Self, Failure> {
        let pairs = mesh.clients.iter().flat_map(|client| mesh.servers.iter().map(move |server| (client, server)));
        Self::between(pairs).await
    }

    /// From each client to the server beside it.
    pub async fn between(pairs: impl Iterator<Item = (&Sidecar, &Sidecar)>) -> Result<Self, Failure> {
        let mut traffic = Self { stop: watch::Sender::new(false), pairs: JoinSet::new(), tallies: Vec::new() };
        for (client, server) in pairs {
            let connection = client.connect().await?;
            let tally = Arc::<Mutex<Tally>>::default();
            traffic.tallies.push(Arc::clone(&tally));
            traffic.pairs.spawn(call(connection, client.name(), server.name(), traffic.stop.subscribe(), tally));
        }
        Ok(traffic)
    }

    /// What has become of the requests of each pair so far.
    pub fn so_far(&self) -> impl Iterator<Item = Tally> {
        self.tallies.iter().map(|tally| tally.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Lets the requests under way finish and adds up.
    pub async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        let mut total = Tally::default();
        while let Some(pair) = self.pairs.join_next().await {
            total.failures.extend(pair.err().map(|error| error.to_string()));
        }
        self.so_far().for_each(|tally| total.add(tally));
        total
    }
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failures.extend(other.failures);
    }
}

async fn call(
    mut connection: Connection,
    client: String,
    server: String,
    stop: watch::Receiver<bool>,
    tally: Arc<Mutex<Tally>>,
) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        ticks.tick().await;
        let answer = connection.get(&server, "/ip").await;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) if answer.status == 200 => tally.answered += 1,
            Ok(answer) => {
                tally.failures.push(format!("{client} to {server}: {} {}", answer.status, answer.text()));
            }
            Err(failure) => {
                // The connection is gone, and with it the stream of this pair: one failure is enough to fail the scene.
                tally.failures.push(format!("{client} to {server}: {failure}"));
                break;
            }
        }
    }
}
