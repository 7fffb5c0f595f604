use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use testkit::{Failure, OrFail, workspace};
use tokio::runtime::Runtime;

use super::hop::Hop;
use crate::summary::milliseconds;

/// When the first rotation comes, and the time from one to the next.
const FIRST: Duration = Duration::from_millis(1500);
const EVERY: Duration = Duration::from_secs(5);
/// Workers of a saturating attack.
const WORKERS: &str = "8";
/// How often it is looked whether the attack is over.
const LOOK: Duration = Duration::from_millis(10);

/// Requests for a while.
pub(super) struct Attack {
    /// How many a second; as many as can be answered when unset.
    pub(super) rate: Option<u32>,
    pub(super) time: Duration,
}

/// What became of them.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Of those that were answered with 200, ascending, in milliseconds.
    pub(super) latencies: Vec<f64>,
    /// The same as a number a second.
    pub(super) rate: f64,
    pub(super) errors: f64,
    pub(super) resets: f64,
    pub(super) handshakes: f64,
}

impl Attack {
    /// Attacks while certificates rotate.
    pub(super) fn run(&self, hop: &mut Hop<'_>, runtime: &Runtime) -> Result<Outcome, Failure> {
        let (handshakes, lost) = hop.counters(runtime)?;
        let mut child = Attacker(self.command(hop)?);
        let start = Instant::now();
        let mut next = start + FIRST;
        while child.0.try_wait().or_fail("wait for vegeta")?.is_none() {
            if Instant::now() >= next && start.elapsed() < self.time {
                hop.rotate(runtime)?;
                next += EVERY;
            }
            thread::sleep(LOOK);
        }
        let counters = hop.counters(runtime).map_err(|failure| hop.explain(failure));
        let (handshakes_after, lost_after) = counters?;
        let mut outcome = read(&results(hop)?, self.time)?;
        outcome.handshakes = (handshakes_after - handshakes).max(0.0);
        outcome.resets += (lost_after - lost).max(0.0);
        if outcome.latencies.is_empty() {
            return Err(hop.explain(Failure::new("no request was answered")));
        }
        Ok(outcome)
    }

    fn command(&self, hop: &Hop<'_>) -> Result<Child, Failure> {
        let targets = hop.file("targets");
        let target = format!("GET http://{}/ip\nHost: httpbin.foo\n", hop.address());
        std::fs::write(&targets, target).or_fail("write the target")?;
        let mut command = Command::new(vegeta());
        let seconds = format!("-duration={}s", self.time.as_secs());
        command.args(["attack", "-timeout=5s", &seconds]);
        command.arg(format!("-targets={}", targets.display()));
        command.arg(format!("-output={}", hop.file("results").display()));
        match self.rate {
            Some(rate) => command.arg(format!("-rate={rate}/1s")),
            None => command.args(["-rate=0", &format!("-workers={WORKERS}"), &format!("-max-workers={WORKERS}")]),
        };
        command.stdin(Stdio::null()).spawn().or_fail("start vegeta")
    }
}

/// The load generator; killed when this is dropped.
struct Attacker(Child);

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vegeta() -> std::path::PathBuf {
    workspace().join("target/vegeta/vegeta")
}

/// Every request of an attack as a line: time, status, latency in nanoseconds, two sizes, error, and more.
fn results(hop: &Hop<'_>) -> Result<String, Failure> {
    let encoded = Command::new(vegeta()).args(["encode", "-to=csv"]).arg(hop.file("results")).output();
    let encoded = encoded.or_fail("read vegeta's results")?;
    String::from_utf8(encoded.stdout).or_fail("read vegeta's results")
}

fn read(lines: &str, time: Duration) -> Result<Outcome, Failure> {
    let (mut latencies, mut errors, mut resets) = (Vec::new(), 0.0, 0.0);
    for line in lines.lines() {
        let fields: Vec<_> = line.splitn(6, ',').collect();
        let [_, status, latency, _, _, rest] = fields[..] else {
            return Err(Failure::new(format!("vegeta's results have the line {line:?}")));
        };
        if status == "200" {
            let latency = latency.parse().or_fail("read a latency")?;
            latencies.push(milliseconds(Duration::from_nanos(latency)));
        } else {
            errors += 1.0;
            // Without a status there was no answer: the connection was reset, closed or refused.
            resets += if status == "0" && !rest.contains("timeout") { 1.0 } else { 0.0 };
        }
    }
    latencies.sort_by(f64::total_cmp);
    let rate = latencies.len() as f64 / time.as_secs_f64();
    Ok(Outcome { latencies, rate, errors, resets, handshakes: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_distinguished() {
        let lines = "1,200,1500000,0,20,,e30=,attack,0,GET,http://127.0.0.1/ip,\n\
                     2,0,900000,0,0,\"Get \"\"http://127.0.0.1/ip\"\": read: connection reset by peer\",,a,1,GET,u,\n\
                     3,503,700000,0,0,503 Service Unavailable,,a,2,GET,u,\n";
        let outcome = read(lines, Duration::from_secs(2)).unwrap();
        assert_eq!(outcome.latencies, [1.5]);
        assert_eq!((outcome.rate, outcome.errors, outcome.resets), (0.5, 2.0, 1.0));
    }
}
