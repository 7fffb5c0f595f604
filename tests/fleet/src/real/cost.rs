//! What a process takes of the machine, as the kernel counts it.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Failure, OrFail, workspace};
use tokio::time::sleep;

use super::{issued, pods::Pods};

/// Processes of each kind whose idle cost is measured, and for how long.
const PROCESSES: u32 = 20;
const IDLE: Duration = Duration::from_secs(30);
/// Life of certificates whose renewal is to be seen within that, and one that is not renewed.
const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(86_400);

/// What one process of many alike takes, in the mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Proportional memory in bytes: what is shared counts in shares.
    pub proportional: f64,
    /// Resident memory in bytes.
    pub resident: f64,
    /// Mapped memory in bytes.
    pub mapped: f64,
    /// Processor time of a rotation in seconds.
    pub rotation: f64,
    /// Processor time of an idle second, in seconds.
    pub idle: f64,
}

/// Of both kinds, idle and with rotations.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// `sds-shim`.
    pub ours: Cost,
    /// Istio's agent, with ECDSA keys.
    pub theirs: Cost,
    /// The command that measured the rotations.
    pub rotations_by: &'static str,
}

impl Cost {
    /// Of processes that took `cpu` seconds for so many rotations.
    pub(super) fn of(pids: &[u32], cpu: f64, rotations: usize) -> Result<Self, Failure> {
        let mut cost = Self { rotation: cpu / rotations.max(1) as f64, ..Self::default() };
        let count = pids.len() as f64;
        for pid in pids {
            cost.proportional += field(*pid, "smaps_rollup", "Pss:")? / count;
            cost.resident += field(*pid, "status", "VmRSS:")? / count;
            cost.mapped += field(*pid, "status", "VmSize:")? / count;
        }
        Ok(cost)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "pss_bytes": self.proportional,
            "rss_bytes": self.resident,
            "mapped_bytes": self.mapped,
            "cpu_seconds_per_rotation": self.rotation,
            "cpu_seconds_per_idle_second": self.idle,
        })
    }
}

/// Processor time of all of them so far, in seconds.
pub(super) fn cpu(pids: &[u32]) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for pid in pids {
        // All threads: `/proc/PID/schedstat` has the first one only.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).or_fail(format!("list the threads of {pid}"))?;
        for task in tasks.flatten() {
            // A thread may have ended meanwhile.
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            sum += stat.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    Ok(sum)
}

/// A figure in kB, as bytes.
fn field(pid: u32, file: &str, name: &str) -> Result<f64, Failure> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).or_fail(format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    value.map(|kilobytes| kilobytes * 1024.0).ok_or_else(|| Failure::new(format!("{path} has no {name}")))
}

/// Measures a few of each kind, one kind after the other: with certificates that last, and with such that are renewed
/// all the time.
///
/// # Errors
/// When a process cannot be started.
pub async fn costs() -> Result<Costs, Failure> {
    let (mut ours, mut theirs) = (of_kind(shims).await?, of_kind(agents).await?);
    let mut rotations_by = "make fleet";
    if let Some(closer) = benchmark() {
        ([ours.rotation, theirs.rotation], rotations_by) = (closer, "make bench");
    }
    Ok(Costs { ours, theirs, rotations_by })
}

/// The processor time of a rotation, in seconds, of ours and theirs, from the report of `make bench` where there is
/// one: it looks at one process in many runs. A quick run's figures are rough.
fn benchmark() -> Option<[f64; 2]> {
    let text = std::fs::read_to_string(workspace().join("target/bench/report.json")).ok()?;
    let report: Value = serde_json::from_str(&text).ok()?;
    if report["quick"] != Value::Bool(false) {
        return None;
    }
    let figure = report["figures"].as_array()?.iter().find(|figure| figure["id"] == "streams.1.rotation.cpu")?;
    let median = |of: &str| Some(figure["results"][of]["median"].as_f64()? / 1e3);
    (figure["unit"] == "ms").then_some([median("sds-shim")?, median("pilot-agent")?])
}

/// The processor time of an idle second, and the memory.
type Idle = (f64, Cost);

async fn of_kind(measure: impl AsyncFn(Duration) -> Result<Measured, Failure>) -> Result<Cost, Failure> {
    let ((idle, cost), ..) = measure(LONG).await?;
    let (_, rotations, seconds) = measure(SHORT).await?;
    // What it takes beside rotations is not theirs.
    let beside = idle * IDLE.as_secs_f64() * f64::from(PROCESSES);
    Ok(Cost { idle, rotation: (seconds - beside).max(0.0) / rotations.max(1) as f64, ..cost })
}

/// What was measured, and how many rotations took how many seconds of processor time in that time.
type Measured = (Idle, usize, f64);

async fn shims(life: Duration) -> Result<Measured, Failure> {
    let mut pods = Pods::new().await?;
    let mut shims = Vec::new();
    for index in 0..PROCESSES {
        let mut shim = pods.shim(index, life, "info")?;
        pods.follow(shim.connect().await?);
        shims.push(shim);
    }
    measure(&pods, &shims.iter().map(|shim| shim.pid()).collect::<Vec<_>>()).await
}

async fn agents(life: Duration) -> Result<Measured, Failure> {
    let mut pods = Pods::new().await?;
    let mut agents = Vec::new();
    for index in 0..PROCESSES {
        let mut agent = pods.agent(&format!("agent-{index}"), life)?;
        pods.follow(agent.connect().await?);
        agents.push(agent);
    }
    measure(&pods, &agents.iter().map(|agent| agent.pid()).collect::<Vec<_>>()).await
}

/// Looks at processes that have just been started, once they have what they want.
async fn measure(pods: &Pods, pids: &[u32]) -> Result<Measured, Failure> {
    tokio::time::timeout(testkit::PATIENCE, pods.ca.wait_for_outcomes(pids.len())).await.or_fail("start processes")?;
    // What follows the first certificate.
    sleep(Duration::from_secs(3)).await;
    let (before, calls) = (cpu(pids)?, issued(&pods.ca));
    sleep(IDLE).await;
    let (seconds, rotations) = (cpu(pids)? - before, issued(&pods.ca) - calls);
    let each = seconds / IDLE.as_secs_f64() / pids.len() as f64;
    Ok(((each, Cost::of(pids, 0.0, 1)?), rotations, seconds))
}
