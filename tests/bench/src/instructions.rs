//! Instructions that a start and a rotation take, by valgrind's callgrind: the same in every run, nearly, however busy
//! the machine is.

use std::{fs, process::Command};

use nix::sys::signal::Signal;
use testkit::{Failure, OrFail};

use crate::{
    agent::{FLOOR, Launch, OURS, Running},
    ground::Ground,
    plan::Plan,
    report::{Figure, Section},
    sds::Crowd,
};

const MILLION: f64 = 1e6;
/// Rotations of one run: their share of the noise is small then.
const ROTATIONS: usize = 20;

/// Counts starts of ours and of the floor, and rotations of ours. Valgrind knows no secret memory, so ours has the
/// ordinary kind here, which takes the same instructions in user mode.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let mut section = Section::new(
        "instructions",
        "Instructions, in user mode",
        "Counted by valgrind's callgrind from exec to the end, with one client; a rotation is a twentieth of what twenty of \
         them add. Istio's agent does not run under valgrind.",
    );
    if Command::new("valgrind").arg("--version").output().is_err() {
        section.remarks.push("valgrind is missing.".to_owned());
        return Ok(section);
    }
    let (mut ours, mut floor, mut rotation) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if plan.quick { 1 } else { 3 } {
        let start = count(Launch::ours(ground)?, 0)?;
        let rotated = count(Launch::ours(ground)?, ROTATIONS)?;
        ours.push(start / MILLION);
        rotation.push((rotated - start) / MILLION / ROTATIONS as f64);
        floor.push(count(Launch::floor(ground)?, 0)? / MILLION);
    }
    let start = || Figure::new("instructions.start", "a start", "million");
    section.add(start, OURS, &ours);
    section.add(start, FLOOR, &floor);
    section.add(|| Figure::new("instructions.rotation", "a rotation", "million"), OURS, &rotation);
    Ok(section)
}

/// Instructions of one run with this many rotations.
fn count(launch: Launch, rotations: usize) -> Result<f64, Failure> {
    let out = launch.directory.join("callgrind.out");
    let file = format!("--callgrind-out-file={}", out.display());
    let floor = launch.is_floor();
    // What stands in for secret memory under valgrind is less than is asked for otherwise.
    let launch = launch.env("SDS_SHIM_REQUIRE_LOCKED", "none").env("PATH", "/usr/bin:/bin");
    let launch = launch.under(&["/usr/bin/env", "valgrind", "--quiet", "--tool=callgrind", &file]);
    let mut running = launch.start()?;
    let (mut crowd, _) = Crowd::open(&mut running, 1)?;
    for _ in 0..rotations {
        running.signal(Signal::SIGUSR1)?;
        crowd.round().map_err(|failure| running.explain(failure))?;
    }
    drop(crowd);
    end(running, floor)?;
    let text = fs::read_to_string(&out).or_fail(format!("read {}", out.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let total = total.and_then(|total| total.trim().parse().ok());
    total.ok_or_else(|| Failure::new(format!("{} has no totals", out.display())))
}

/// The floor ends with its connection, the shim when it is told to.
fn end(running: Running, floor: bool) -> Result<(), Failure> {
    if floor { running.wait() } else { running.terminate() }
}
