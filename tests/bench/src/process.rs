//! What the kernel counts of a process.

use std::{fs, time::Duration};

use nix::{time::ClockId, unistd::Pid};
use testkit::{Failure, OrFail};

/// Memory in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// In pages that are there, shared ones in full.
    pub(crate) resident: f64,
    /// The same, each page divided by the number of processes that share it.
    pub(crate) proportional: f64,
    /// In pages that it alone has and has written to.
    pub(crate) private: f64,
    /// In the address space.
    pub(crate) mapped: f64,
}

/// The memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory, Failure> {
    Ok(Memory {
        resident: field(pid, "smaps_rollup", "Rss")?,
        proportional: field(pid, "smaps_rollup", "Pss")?,
        private: field(pid, "smaps_rollup", "Private_Dirty")?,
        mapped: field(pid, "status", "VmSize")?,
    })
}

/// How often any of its threads was scheduled, of its own will or not.
pub(crate) fn context_switches(pid: u32) -> Result<f64, Failure> {
    let mut switches = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).or_fail("list threads")?.flatten() {
        let file = format!("task/{}/status", thread.file_name().display());
        for name in ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"] {
            switches += field(pid, &file, name)?;
        }
    }
    Ok(switches)
}

/// The time that it has spent on a processor, in user mode and in the kernel, to the nanosecond.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, Failure> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).or_fail("find a process's clock")?;
    clock.now().map(Duration::from).or_fail("read a process's clock")
}

/// The number behind a name in a file of `/proc/PID`.
fn field(pid: u32, file: &str, name: &str) -> Result<f64, Failure> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).or_fail(format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok());
    value.ok_or_else(|| Failure::new(format!("{path} has no {name}")))
}
