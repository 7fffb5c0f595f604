//! `make bench`: sds-shim, Istio's agent and a bare program that does only what cannot be avoided, in turn, in one run,
//! against one development CA. Prints what it measures and writes `target/bench/report.{json,md,svg}`.
//!
//! `BENCH_QUICK=1` takes few runs of everything; `BENCH_ONLY=start,load` runs these parts alone, into `part.*`;
//! `BENCH_README=1` writes what it measured into the manual and the README.
#![forbid(unsafe_code)]

mod agent;
mod callgrind;
mod ground;
mod idle;
mod instructions;
mod load;
mod node;
mod plan;
mod process;
mod report;
mod sds;
mod sizes;
mod start;
mod streams;
mod summary;

use std::{process::ExitCode, time::Instant};

use testkit::Failure;

use crate::{
    ground::Ground,
    plan::Plan,
    report::{Report, Section},
};

type Part = fn(&Ground, &Plan) -> Result<Section, Failure>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome = match &arguments[..] {
        [first, socket, streams] if first == sds::CLIENT => sds::client(socket, streams),
        _ => run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let start = Instant::now();
    let plan = Plan::from_env()?;
    let ground = Ground::new()?;
    let parts: [(&str, Part); 7] = [
        ("start", start::measure),
        ("node", node::measure),
        ("streams", streams::measure),
        ("idle", idle::measure),
        ("instructions", instructions::measure),
        ("sizes", sizes::measure),
        ("load", load::measure),
    ];
    let mut report = Report { quick: plan.quick, whole: plan.is_whole(), sections: Vec::new() };
    for (name, part) in parts.into_iter().filter(|(name, _)| plan.has(name)) {
        let since = Instant::now();
        report.sections.push(part(&ground, &plan).map_err(|failure| failure.context(name))?);
        println!("bench: {name} took {:.0} s", since.elapsed().as_secs_f64());
    }
    print!("{}", report.write()?);
    println!("bench: done in {:.0} s; the report is in target/bench", start.elapsed().as_secs_f64());
    Ok(())
}
