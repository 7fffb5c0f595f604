//! A steady stream of requests from every client to every server.

use std::time::Duration;

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
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that were answered with 200.
    pub answered: u64,
    /// What happened instead, each in words.
    pub failures: Vec<String>,
}

/// A running stream.
pub struct Traffic {
    stop: watch::Sender<bool>,
    pairs: JoinSet<Tally>,
}

impl Traffic {
    /// From every client to every server.
    pub async fn start(mesh: &Mesh) -> Result<Self, Failure> {
        let pairs = mesh.clients.iter().flat_map(|client| mesh.servers.iter().map(move |server| (client, server)));
        Self::between(pairs).await
    }

    /// From each client to the server beside it.
    pub async fn between(pairs: impl Iterator<Item = (&Sidecar, &Sidecar)>) -> Result<Self, Failure> {
        let mut traffic = Self { stop: watch::Sender::new(false), pairs: JoinSet::new() };
        for (client, server) in pairs {
            let connection = client.connect().await?;
            traffic.pairs.spawn(call(connection, client.name(), server.name(), traffic.stop.subscribe()));
        }
        Ok(traffic)
    }

    /// Lets the requests under way finish and adds up.
    pub async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        let mut total = Tally::default();
        while let Some(pair) = self.pairs.join_next().await {
            match pair {
                Ok(tally) => {
                    total.answered += tally.answered;
                    total.failures.extend(tally.failures);
                }
                Err(error) => total.failures.push(error.to_string()),
            }
        }
        total
    }
}

async fn call(mut connection: Connection, client: String, server: String, stop: watch::Receiver<bool>) -> Tally {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tally = Tally::default();
    while !*stop.borrow() {
        ticks.tick().await;
        match connection.get(&server, "/ip").await {
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
    tally
}
