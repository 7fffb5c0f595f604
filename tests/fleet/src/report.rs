//! The report of the simulation: a table, the goals, and a plot for each scenario.

use std::{fmt::Write as _, path::Path, thread};

use serde_json::{Value, json};
use testkit::{Failure, OrFail};

use crate::{
    clients::{Agent, Shim},
    goals::{Figures, Verdict, goals},
    plot::{Curve, binned, draw},
    scenarios::Scenario,
};

/// What came of one scenario.
pub struct Row {
    /// What happened.
    pub scenario: Scenario,
    /// With `sds-shim`.
    pub ours: Figures,
    /// With Istio's agent.
    pub theirs: Figures,
    /// Ours against the goals.
    pub verdicts: Vec<Verdict>,
}

/// Runs the scenarios with both clients, two at a time, and draws their plots into `directory`.
pub fn simulate(scenarios: Vec<Scenario>, directory: &Path) -> Result<Vec<Row>, Failure> {
    scenarios.into_iter().map(|scenario| both(scenario, directory)).collect()
}

fn both(scenario: Scenario, directory: &Path) -> Result<Row, Failure> {
    let share = scenario.peer_share;
    let (ours, theirs) = thread::scope(|scope| {
        let theirs = scope.spawn(|| scenario.run::<Agent>((scenario.clients / share).max(1), 1));
        (scenario.run::<Shim>(scenario.clients, 1), theirs.join())
    });
    let theirs = theirs.map_err(|_| Failure::new("the reference's simulation panicked"))?;
    let (span, bin) = (scenario.view.clone(), scenario.bin);
    let curves = [
        Curve { name: "sds-shim", points: binned(&ours.calls, span.clone(), bin, 1.0) },
        Curve { name: "Istio's agent", points: binned(&theirs.calls, span, bin, f64::from(share)) },
    ];
    let title = format!("{} sidecars: {}", scenario.clients, scenario.title);
    let file = directory.join(format!("{}.svg", scenario.name));
    draw(&file, &title, curves, Some((scenario.capacity as f64, "what the CA can issue")))?;
    let figures = Figures::of(&scenario, &ours, 1);
    let verdicts = goals(&scenario, &figures);
    Ok(Row { verdicts, ours: figures, theirs: Figures::of(&scenario, &theirs, share), scenario })
}

/// The rows as a table in Markdown, with the goals below.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| scenario | client | calls | for each certificate | peak in 10 s \
         | calls of a sidecar in an hour of the outage, at most | attempts of a sidecar to connect in it, at most \
         | attempts to connect of all | half served after | all served after | goodput | lapsed | peak of the renewals afterwards against the mean |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        for (name, figures) in [("sds-shim", &row.ours), ("Istio's agent", &row.theirs)] {
            let seconds = figures.recovery.or(figures.slowest.filter(|_| row.scenario.outage.is_none()));
            let _ = writeln!(
                text,
                "| {} | {name} | {:.0} | {:.2} | {:.1}/s | {} | {} | {:.0} | {} | {} | {} | {:.0} | {:.2} |",
                row.scenario.title,
                figures.calls,
                figures.calls_per_certificate(),
                figures.peak,
                figures.outage_calls.map_or("-".to_owned(), |calls| format!("{calls:.0}")),
                figures.outage_refused.map_or("-".to_owned(), |refused| format!("{refused:.0}")),
                figures.refused,
                figures.median_recovery.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s")),
                seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s")),
                figures.goodput.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
                figures.lapses,
                figures.echo,
            );
        }
    }
    text += "\n| goal | scenario | measured | met |\n|---|---|---|---|\n";
    for verdict in rows.iter().flat_map(|row| &row.verdicts) {
        let met = if verdict.met { "yes" } else { "**no**" };
        let _ = writeln!(text, "| {} | {} | {:.2} | {met} |", verdict.goal, verdict.scenario, verdict.measured);
    }
    text
}

/// The same for programs.
pub fn json(rows: &[Row]) -> Value {
    let figures = |figures: &Figures| {
        json!({
            "calls": figures.calls,
            "certificates": figures.certificates,
            "peak_per_second": figures.peak,
            "outage_calls_per_hour": figures.outage_calls,
            "refused": figures.refused,
            "outage_refused_per_hour": figures.outage_refused,
            "median_recovery_seconds": figures.median_recovery,
            "goodput": figures.goodput,
            "recovery_seconds": figures.recovery,
            "recovery_peak_per_second": figures.recovery_peak,
            "recovery_mean_per_second": figures.recovery_mean,
            "slowest_first_seconds": figures.slowest,
            "lapses": figures.lapses,
            "renewals_peak_to_mean": figures.echo,
        })
    };
    let verdict = |verdict: &Verdict| json!({"goal": verdict.goal, "measured": verdict.measured, "met": verdict.met});
    let row = |row: &Row| {
        json!({
            "scenario": row.scenario.name,
            "title": row.scenario.title,
            "clients": row.scenario.clients,
            "capacity_per_second": row.scenario.capacity,
            "sds-shim": figures(&row.ours),
            "pilot-agent": figures(&row.theirs),
            "goals": row.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        })
    };
    rows.iter().map(row).collect()
}

/// Writes a file of the report.
pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).or_fail(format!("write {}", file.display()))
}
