//! `make fleet`: simulates a fleet, runs a small real one beside it, and writes the report.

use std::{path::Path, process::ExitCode};

use fleet::{
    capacity, plot,
    real::{self, Costs, Run},
    report::{self, Row},
    scenarios,
};
use testkit::{Failure, OrFail, workspace};

/// How many sidecars are simulated, unless `FLEET_CLIENTS` says otherwise.
const CLIENTS: u32 = 100_000;
/// Fewer real shims than this prove little.
const FEWEST: u32 = 500;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("fleet: goals were missed, see the tables");
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("fleet: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Failure> {
    let directory = workspace().join("target/fleet");
    std::fs::create_dir_all(&directory).or_fail("make target/fleet")?;
    let clients = number("FLEET_CLIENTS")?.unwrap_or(CLIENTS);
    println!("fleet: {clients} sidecars in virtual time\n");
    let rows = report::simulate(scenarios::all(clients), &directory)?;
    let simulation = report::markdown(&rows);
    println!("{simulation}");
    let (run, costs) = processes(&directory)?;
    let real = format!("{}\n{}", run.markdown(), costs.markdown());
    println!("{real}");
    report::write(&directory.join("report.md"), &format!("# Simulated\n\n{simulation}\n# Real\n\n{real}"))?;
    let json = serde_json::json!({ "simulation": report::json(&rows), "real": run.json(), "costs": costs.json() });
    report::write(&directory.join("report.json"), &format!("{json:#}\n"))?;
    match std::env::var_os("CAPACITY_PAGE") {
        Some(_) => write_page(clients, &rows, &run, &costs)?,
        None => println!("fleet: CAPACITY_PAGE=1 updates src/manual/evidence/capacity.md"),
    }
    println!("fleet: report and plots are in target/fleet");
    Ok(met(&rows) && run.agrees())
}

fn write_page(clients: u32, rows: &[Row], run: &Run, costs: &Costs) -> Result<(), Failure> {
    report::write(&workspace().join("src/manual/evidence/capacity.md"), &capacity::page(clients, rows, run, costs))
}

fn met(rows: &[Row]) -> bool {
    rows.iter().flat_map(|row| &row.verdicts).all(|verdict| verdict.met)
}

/// As many real processes as the machine bears.
fn processes(directory: &Path) -> Result<(Run, Costs), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("the shims run as users of their own: start this as root"));
    }
    let shims = number("FLEET_SHIMS")?.map_or_else(real::bearable, Ok)?;
    if shims < FEWEST {
        println!("fleet: there is memory for {shims} shims only; {FEWEST} are wanted");
    }
    println!("fleet: {shims} real shims for five minutes, then a few of each kind for what a process costs\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.or_fail("start a runtime")?;
    let run = runtime.block_on(real::run(shims))?;
    let title = format!("{} real shims, and the simulation of the same", run.shims);
    plot::draw(&directory.join("real.svg"), &title, run.curves(), None)?;
    let costs = runtime.block_on(real::costs())?;
    Ok((run, costs))
}

/// A number in the environment.
fn number(variable: &str) -> Result<Option<u32>, Failure> {
    match std::env::var(variable) {
        Ok(text) => text.parse().map(Some).or_fail(format!("read {variable}={text:?} as a number")),
        Err(_) => Ok(None),
    }
}
