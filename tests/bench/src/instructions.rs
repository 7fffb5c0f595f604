//! Instructions that a start and a rotation take, and by which functions.

use std::{fs::File, process::Command};

use inferno::flamegraph::{self, Options};
use testkit::{Failure, OrFail, workspace};

use crate::{
    agent::{FLOOR, Launch, OURS},
    callgrind::{self, Graph},
    ground::Ground,
    plan::Plan,
    report::{self, Figure, Section},
};

const MILLION: f64 = 1e6;
/// Rotations of one run: their share of the noise is small then.
const ROTATIONS: usize = 20;
/// The shipped binary with its symbols.
const WITH_SYMBOLS: &str = "target/bench/sds-shim-with-symbols";

/// Counts starts of ours and of the floor, and rotations of ours, and draws flame graphs of ours.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let mut section = Section::new(
        "instructions",
        "Instructions, in user mode",
        "Counted by valgrind's callgrind from exec to the end, with one client; a rotation is a twentieth of what \
         twenty of them add. Istio's agent does not run under valgrind. By function: `target/bench/flame-start.svg` \
         and `flame-rotation.svg`.",
    );
    if Command::new("valgrind").arg("--version").output().is_err() {
        section.remarks.push("valgrind is missing.".to_owned());
        return Ok(section);
    }
    let (mut ours, mut floor, mut rotation) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if plan.quick { 1 } else { 3 } {
        let start = callgrind::count(Launch::ours(ground)?, 0)?;
        let rotated = callgrind::count(Launch::ours(ground)?, ROTATIONS)?;
        ours.push(start / MILLION);
        rotation.push((rotated - start) / MILLION / ROTATIONS as f64);
        floor.push(callgrind::count(Launch::floor(ground)?, 0)? / MILLION);
    }
    let start = || Figure::new("instructions.start", "a start", "million");
    section.add(start, OURS, &ours);
    section.add(start, FLOOR, &floor);
    section.add(|| Figure::new("instructions.rotation", "a rotation", "million"), OURS, &rotation);
    match flames(ground) {
        Ok(()) => {}
        Err(failure) => section.remarks.push(format!("No flame graphs: {}.", failure.what())),
    }
    Ok(section)
}

fn flames(ground: &Ground) -> Result<(), Failure> {
    let binary = workspace().join(WITH_SYMBOLS);
    let launch = || Ok(Launch::ours(ground)?.program(&binary));
    let start = callgrind::graph(launch()?, 0)?;
    let rotation = callgrind::graph(launch()?, ROTATIONS)?.beyond(&start, ROTATIONS as f64);
    draw("flame-start.svg", "A start, by instructions in user mode", &start)?;
    draw("flame-rotation.svg", "A rotation, by instructions in user mode", &rotation)
}

fn draw(file: &str, title: &str, graph: &Graph) -> Result<(), Failure> {
    let path = report::directory()?.join(file);
    let out = File::create(&path).or_fail(format!("create {}", path.display()))?;
    let mut options = Options::default();
    options.title = title.to_owned();
    options.count_name = "instructions".to_owned();
    let stacks = graph.stacks();
    flamegraph::from_lines(&mut options, stacks.iter().map(String::as_str), out)
        .or_fail(format!("draw {}", path.display()))
}
