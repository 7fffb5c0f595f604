//! As many real shims as the machine bears, through an outage of the development CA, held against the simulation of the
//! same; and a few of Istio's agents for what a process costs.

mod cost;
mod pods;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    development_ca::{DevelopmentCa, Outcome as CallOutcome},
    shim::Shim,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    ca::{Ca, Condition, Queue},
    clients,
    plot::{Curve, binned},
    simulation::Simulation,
    time::{Micros, SECOND, micros},
};
pub use cost::{Cost, Costs, costs};
use pods::{Pods, open_many_files};

/// Life of each certificate: it is renewed after 54 to 78 s, with 42 s left at the least.
const LIFE: Duration = Duration::from_secs(120);
/// The fleet starts within this.
const STARTS: Duration = Duration::from_secs(40);
/// From when to when the CA fails: less than what is left at any renewal.
const OUTAGE: (u64, u64) = (150, 190);
/// When it is over.
const END: u64 = 260;
/// From when on the fleet is renewing all the time.
const STEADY: u64 = 60;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// Seconds of a bin.
const BIN: usize = 10;
/// How many simulations the run is held against.
const SIMULATIONS: u64 = 40;
/// How far the number of calls in a phase may be from the simulations' mean: a share of it.
const MARGIN: f64 = 0.15;

/// What the run brought.
pub struct Run {
    /// How many shims.
    pub shims: u32,
    /// The phases: name, calls observed, calls simulated.
    pub phases: Vec<(&'static str, f64, f64)>,
    /// Bins further from the simulations' mean than three of their standard deviations, and all bins.
    pub outside: (usize, usize),
    /// Certificates that lapsed.
    pub lapses: usize,
    /// Resources of one shim.
    pub cost: Cost,
    observed: Vec<u32>,
    simulated: Vec<f64>,
}

impl Run {
    /// Whether the simulation tells what really happens.
    pub fn agrees(&self) -> bool {
        let near = |(_, observed, simulated): &(_, f64, f64)| (observed - simulated).abs() <= MARGIN * simulated;
        self.phases.iter().all(near) && self.outside.0 * 10 <= self.outside.1 && self.lapses == 0
    }

    /// The two curves.
    pub fn curves(&self) -> [Curve<'_>; 2] {
        let simulated = self.simulated.iter().enumerate();
        [
            Curve { name: "observed", points: binned(&self.observed, 0..self.observed.len(), BIN, 1.0) },
            Curve { name: "simulated", points: simulated.map(|(bin, rate)| ((bin * BIN) as f64, *rate)).collect() },
        ]
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{} real shims, certificates of {} s, the CA fails from second {} to {}:\n\n| phase | calls observed \
             | simulated, mean of {SIMULATIONS} runs | difference |\n|---|---|---|---|\n",
            self.shims,
            LIFE.as_secs(),
            OUTAGE.0,
            OUTAGE.1
        );
        for (phase, observed, simulated) in &self.phases {
            let difference = 100.0 * (observed - simulated) / simulated;
            text += &format!("| {phase} | {observed:.0} | {simulated:.0} | {difference:+.1} % |\n");
        }
        let (outside, bins) = self.outside;
        text + &format!(
            "\n{outside} of {bins} bins of {BIN} s are further from the mean than 3 standard deviations of \
             the simulations; {} certificates lapsed. The model holds within {:.0} % a phase: {}.\n",
            self.lapses,
            100.0 * MARGIN,
            if self.agrees() { "yes" } else { "**no**" }
        )
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let phase = |(name, observed, simulated): &(&str, f64, f64)| json!({ "phase": name, "observed": observed, "simulated": simulated });
        json!({
            "shims": self.shims,
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(),
            "bins_outside": self.outside.0,
            "bins": self.outside.1,
            "lapses": self.lapses,
            "agrees": self.agrees(),
            "cost": self.cost.json(),
        })
    }
}

/// Runs so many shims through the outage.
///
/// # Errors
/// When a shim cannot be started, or ends.
pub async fn run(shims: u32) -> Result<Run, Failure> {
    open_many_files()?;
    let mut pods = Pods::new().await?;
    let began = Instant::now();
    let at = |second: u64| began + Duration::from_secs(second);
    let mut starts = Vec::new();
    let mut running: Vec<Shim> = Vec::new();
    for index in 0..shims {
        sleep_until(began + STARTS * index / shims).await;
        starts.push(micros(began.elapsed()));
        // Each failed attempt is a line.
        running.push(pods.shim(index, LIFE, "debug")?);
    }
    for shim in &mut running {
        pods.follow(shim.connect().await?);
    }
    sleep_until(at(STEADY)).await;
    let pids: Vec<_> = running.iter().map(|shim| shim.pid()).collect();
    let (cpu, calls) = (cost::cpu(&pids)?, issued(&pods.ca));
    sleep_until(at(OUTAGE.0 - 10)).await;
    let cost = Cost::of(&pids, cost::cpu(&pids)? - cpu, issued(&pods.ca) - calls)?;
    sleep_until(at(OUTAGE.0)).await;
    // Connections are refused, which takes nobody's time: the CA's own is not what is measured.
    pods.door.close().await;
    let outage = (micros(began.elapsed()), OUTAGE.1 * SECOND);
    sleep_until(at(OUTAGE.1)).await;
    pods.door.lead_to(pods.ca.address()).await?;
    sleep_until(at(END)).await;
    let observed = observed(&pods.ca, &running, began);
    for shim in &mut running {
        if let Some(status) = shim.exited() {
            return Err(shim.failure(format!("a shim has ended: {status}")));
        }
    }
    let lapses = running.iter().filter(|shim| shim.log().contains("the certificate expired at")).count();
    let runs: Vec<_> = (0..SIMULATIONS).map(|seed| simulated(&starts, outage, seed)).collect();
    Ok(compare(shims, observed, &runs, lapses, cost))
}

fn issued(ca: &DevelopmentCa) -> usize {
    ca.calls().iter().filter(|call| matches!(call.outcome, CallOutcome::Issued { .. })).count()
}

/// The calls that were made in each second since the run began: those that reached the CA, as it has noted them, and
/// those that found no connection, as the shims' logs have them.
fn observed(ca: &DevelopmentCa, shims: &[Shim], began: Instant) -> Vec<u32> {
    let start = SystemTime::now() - began.elapsed();
    let reached = ca.calls().into_iter().map(|call| call.at.duration_since(start).unwrap_or_default().as_secs());
    let midnight = start.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % DAY;
    let lines = shims.iter().flat_map(|shim| shim.log().lines());
    // A wait follows each failed attempt; those that the CA had noted are not counted twice.
    let refused = lines.filter(|line| line.contains("waiting before the next attempt"));
    let refused = refused.filter_map(|line| Some((time_of_day(&line)? + DAY - midnight) % DAY));
    let refused = refused.filter(|second| (OUTAGE.0..=OUTAGE.1).contains(second));
    let mut seconds = vec![0; END as usize];
    for second in reached.chain(refused) {
        if let Some(count) = seconds.get_mut(second as usize) {
            *count += 1;
        }
    }
    seconds
}

/// Seconds since midnight at the beginning of a line of the log (RFC 3339).
fn time_of_day(line: &str) -> Option<u64> {
    let time = line.get(11..19)?;
    time.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))
}

/// The same fleet in virtual time, started at the same moments.
fn simulated(starts: &[Micros], (from, to): (Micros, Micros), seed: u64) -> Vec<u32> {
    let up = Condition::Up { per_second: 1000, latency: SECOND / 100 };
    let conditions = vec![(0, up), (from, Condition::Away), (to, up)];
    let ca = Ca::new(conditions, Queue::Endless, LIFE.as_secs() as i64);
    let mut simulation = Simulation::new(starts.len() as u32, clients::Shim::default, ca, None, seed);
    for (client, at) in starts.iter().enumerate() {
        simulation.start_at(client as u32, *at);
    }
    let outcome = simulation.run(END * SECOND);
    outcome.calls.iter().zip(&outcome.refused).map(|(calls, refused)| calls + refused).collect()
}

fn compare(shims: u32, observed: Vec<u32>, runs: &[Vec<u32>], lapses: usize, cost: Cost) -> Run {
    let sum = |calls: &[u32]| calls.iter().map(|calls| f64::from(*calls)).sum::<f64>();
    let count = runs.len() as f64;
    let mean = |from: usize, to: usize| runs.iter().map(|run| sum(&run[from..to])).sum::<f64>() / count;
    let (outage, end) = ((OUTAGE.0 as usize, OUTAGE.1 as usize), END as usize);
    let spans = [("start", 0, STEADY as usize), ("steady", STEADY as usize, outage.0), ("outage", outage.0, outage.1)];
    // Until the end: a shorter phase has so few calls that chance alone moves their number by a tenth.
    let spans = spans.into_iter().chain([("recovery", outage.1, end)]);
    let phases = spans.map(|(name, from, to)| (name, sum(&observed[from..to]), mean(from, to))).collect();
    let mut outside = 0;
    let mut simulated = Vec::new();
    for from in (0..end).step_by(BIN) {
        let (to, mean) = (from + BIN, mean(from, from + BIN));
        let variance = runs.iter().map(|run| (sum(&run[from..to]) - mean).powi(2)).sum::<f64>() / count;
        // A call on either side of a bin's edge is chance as well.
        outside += usize::from((sum(&observed[from..to]) - mean).abs() > 3.0 * variance.sqrt() + 3.0);
        simulated.push(mean / BIN as f64);
    }
    Run { shims, phases, outside: (outside, simulated.len()), lapses, cost, observed, simulated }
}

/// How many shims the machine bears beside what runs on it: each locks up to 8 MiB, and 3 GiB are left to others.
///
/// # Errors
/// When the kernel does not say how much memory is left.
pub fn bearable() -> Result<u32, Failure> {
    const MOST: u64 = 1000;
    let info = std::fs::read_to_string("/proc/meminfo").or_fail("read /proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let available = available.ok_or_else(|| Failure::new("/proc/meminfo has no MemAvailable"))?;
    Ok((available.saturating_sub(3 << 20) / (8 << 10)).min(MOST) as u32)
}
