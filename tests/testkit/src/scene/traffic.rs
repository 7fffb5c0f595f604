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
pub(super) struct Tally {
    pub(super) answered: u64,
    pub(super) failures: Vec<String>,
}

/// A running stream.
pub(super) struct Traffic {
    stop: watch::Sender<bool>,
    pairs: JoinSet<Tally>,
}

impl Traffic {
    pub(super) async fn start(mesh: &Mesh) -> Result<Self, Failure> {
        let stop = watch::Sender::new(false);
        let mut pairs = JoinSet::new();
        for client in &mesh.clients {
            for server in mesh.servers.iter().map(Sidecar::name) {
                pairs.spawn(call(client.connect().await?, client.name(), server, stop.subscribe()));
            }
        }
        Ok(Self { stop, pairs })
    }

    /// Lets the requests under way finish and adds up.
    pub(super) async fn stop(mut self) -> Tally {
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
