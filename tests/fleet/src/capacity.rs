//! The capacity page: what fleets of three sizes cost, from what was measured and simulated in the same run.

use std::fmt::Write as _;

use crate::{
    clients::{Agent, Shim},
    goals::Figures,
    real::{Cost, Costs, Run},
    report::{Row, markdown},
    scenarios::{self, Scenario},
    simulation::Client,
};

const SIZES: [u32; 3] = [1000, 10_000, 100_000];
const DAY: f64 = 86_400.0;
const GIB: f64 = (1 << 30) as f64;
const MIB: f64 = (1 << 20) as f64;

/// One line of the table: what it is, how it is written, and the figures of ours and theirs for each size.
struct Line {
    what: &'static str,
    command: &'static str,
    figures: Vec<[String; 2]>,
}

/// How the table begins.
const HEAD: &str =
    "| what | 1,000 sidecars | 10,000 sidecars | 100,000 sidecars | measured by |\n|---|---|---|---|---|\n";

/// What fleets of three sizes cost.
fn table(costs: &Costs) -> String {
    let mut text = HEAD.to_owned();
    for Line { what, command, figures } in lines(costs) {
        let cells: Vec<_> = figures.iter().map(|[ours, theirs]| format!("**{ours}** / {theirs}")).collect();
        let _ = writeln!(text, "| {what} | {} | {command} |", cells.join(" | "));
    }
    text
}

/// The page in Markdown.
pub fn page(clients: u32, rows: &[Row], run: &Run, costs: &Costs) -> String {
    let mut text = format!("{INTRODUCTION}\n{}", table(costs));
    let _ = write!(text, "\n## One process\n\n{}\n{ABOUT_COSTS}\n", costs.markdown());
    let _ = write!(text, "\n## The model against processes\n\n{}", run.markdown());
    let _ = write!(
        text,
        "\n## {} sidecars, simulated\n\n{ABOUT_SIMULATION}\n\n{}",
        thousands(f64::from(clients)),
        markdown(rows)
    );
    text + END
}

const INTRODUCTION: &str = "\
# Capacity

What a fleet of 1,000 to 100,000 sidecars costs its nodes and its CA, with `sds-shim` (**first figure**) and \
with Istio's agent. `CAPACITY_PAGE=1 make fleet` writes this page. Memory and processor time are those of real \
processes on one machine, multiplied. CA calls are simulated in virtual time: for the shim with its shipped \
functions of schedule and back-off, for Istio's agent with its own constants (half of the life, give or take a \
hundredth; five attempts per signing; Envoy's back-off). Certificates live for a day.
";

const ABOUT_COSTS: &str = "\
Proportional memory divides what processes share among them, here the twenty of each kind that ran. A shim opens \
a connection to the CA for each rotation, while the agent keeps one open; most of the agent's time goes into \
what it does while nothing happens. Istio's agent makes ECDSA keys here, its quicker kind. The sidecar's Envoy \
is not counted on either side.";

const ABOUT_SIMULATION: &str = "\
The CA issues 1 certificate a second for every 200 sidecars, queues 2 s' worth of calls and rejects the others \
with `RESOURCE_EXHAUSTED`, unless the row says otherwise. A call is what a client attempts: while a connection \
is refused, gRPC makes one for about two of Istio's five attempts. Istio's agents make so many calls that ten or \
a hundred times fewer are simulated and their calls multiplied. Peaks are counted in 10 s; the peak of the \
renewals afterwards, in a hundredth of the certificate's life, is compared with the mean of a fleet that has run \
for long.

Two goals differ after an outage: the calls of the recovery must be at most 3 times their own mean, so that the \
CA's return is no spike; and 100,000 sidecars that all wait must be served within 10 min by at most 500 calls a \
second. Three times the mean of the steady state would be 6 calls a second for them, and a recovery would take \
hours. Connections that are refused cost the CA nothing: in Kubernetes the node itself refuses those to a service \
without endpoints. So they are a column of their own, and who has nothing valid looks for such a CA every 1 to 4 s, \
for half an hour. A single sidecar cannot know how many others there are: when the CA is back after so long, more \
may call than it can serve, it has to reject some, and those back off as ever. Beyond half an hour the waits grow \
to 5 min, so that after an hour 100,000 find the CA one after the other. What fails otherwise, with an error, \
overload, a deadline or a slow handshake, is left alone for longer each time from the start. A CA that rejects nobody, and works on \
calls whose clients have given up, loses that work: a start of everybody at once takes it two hours. Istio's \
agent has no deadline and waits, which is quicker there, and lasts for ever if the CA never answers.";

const END: &str = "
See also: [benchmarks][benchmarks] · [budgets][budgets] · [behaviour while the CA fails][behaviour#the-ca-fails] \
· [architecture][architecture]

[benchmarks]: benchmarks.md
[budgets]: budgets.md
[behaviour#the-ca-fails]: ../reference/behaviour.md#the-ca-fails
[architecture]: ../design/architecture.md
";

fn lines(costs: &Costs) -> Vec<Line> {
    const PROCESS: &str = "`make fleet`, one process";
    let processor = match costs.rotations_by {
        "make fleet" => PROCESS,
        _ => "`make fleet` while idle, `make bench` in rotations",
    };
    const SIMULATED: &str = "`make fleet`, simulated";
    let both = |of: fn(&Cost, f64, f64) -> String| -> Vec<[String; 2]> {
        let sizes = SIZES.map(f64::from);
        sizes.map(|size| [of(&costs.ours, size, 0.55), of(&costs.theirs, size, 0.5)]).into()
    };
    let simulated = |scenario: fn(u32) -> Scenario, of: fn(&Figures, &Scenario) -> f64| -> Vec<[String; 2]> {
        let figure = |size| {
            let scenario = scenario(size);
            let share = scenario.peer_share.min(size / 1000);
            let theirs = figures::<Agent>(&scenario, share);
            [of(&figures::<Shim>(&scenario, 1), &scenario), of(&theirs, &scenario)].map(thousands)
        };
        SIZES.map(figure).into()
    };
    let line = |what, command, figures| Line { what, command, figures };
    vec![
        line("memory, proportional, GiB", PROCESS, both(|cost, size, _| three(size * cost.proportional / GIB))),
        line("memory, mapped, GiB", PROCESS, both(|cost, size, _| three(size * cost.mapped / GIB))),
        line(
            "processor, cores in the mean",
            processor,
            both(|cost, size, renewed| three(size * (cost.idle + cost.rotation / (renewed * DAY)))),
        ),
        line("CA calls a day", SIMULATED, simulated(scenarios::steady, |figures, _| figures.calls)),
        line(
            "CA calls while all pods are restarted",
            SIMULATED,
            simulated(scenarios::restarted, |figures, _| figures.calls),
        ),
        line(
            "CA calls around an outage of 1 h, until 30 min after it",
            SIMULATED,
            simulated(scenarios::outage, |figures, _| figures.calls),
        ),
        line(
            "attempts to connect in an outage of 1 h, of which the CA knows nothing",
            SIMULATED,
            simulated(scenarios::outage, |figures, _| figures.refused),
        ),
        line(
            "the same of 30 min in which all wait for their first certificate",
            SIMULATED,
            simulated(scenarios::started_in_half_an_hour, |figures, _| figures.refused),
        ),
        line(
            "CA calls beyond the usual when trust anchors change",
            SIMULATED,
            simulated(scenarios::roots, |figures, scenario| {
                (figures.calls - 2.0 * scenario.steady_rate() * scenario.view.len() as f64).max(0.0)
            }),
        ),
    ]
}

fn figures<C: Client + Default>(scenario: &Scenario, share: u32) -> Figures {
    Figures::of(scenario, &scenario.run::<C>(scenario.clients / share, 1), share)
}

/// With three significant digits.
fn three(figure: f64) -> String {
    match figure {
        ..=0.0 => "0".to_owned(),
        _ => {
            let digits = (2 - figure.log10().floor() as i32).max(0) as usize;
            match digits {
                0 => thousands(figure),
                _ => format!("{figure:.digits$}"),
            }
        }
    }
}

/// Whole, with commas.
fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

impl Costs {
    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| one process | sds-shim | Istio's agent | ratio |\n|---|---|---|---|\n");
        let mut line = |what: &str, unit: f64, of: fn(&Cost) -> f64| {
            let (ours, theirs) = (of(&self.ours) / unit, of(&self.theirs) / unit);
            let ratio = if ours > 0.0 { format!("{:.1}", theirs / ours) } else { "-".to_owned() };
            let _ = writeln!(text, "| {what} | {} | {} | {ratio} |", three(ours), three(theirs));
        };
        line("proportional memory, MiB", MIB, |cost| cost.proportional);
        line("resident memory, MiB", MIB, |cost| cost.resident);
        line("mapped memory, MiB", MIB, |cost| cost.mapped);
        line("processor time of a rotation, ms", 1e-3, |cost| cost.rotation);
        line("processor time of an idle hour, ms", 1e-3 / 3600.0, |cost| cost.idle);
        if self.rotations_by != "make fleet" {
            let _ = writeln!(text, "\nThe processor time of a rotation is that of `{}`.", self.rotations_by);
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "sds-shim": self.ours.json(), "pilot-agent": self.theirs.json() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_manual_is_of_this_form() {
        let page = std::fs::read_to_string(testkit::workspace().join("src/manual/evidence/capacity.md")).unwrap();
        assert!(page.starts_with(&format!("{INTRODUCTION}\n{HEAD}")));
        assert!(page.contains(ABOUT_COSTS) && page.contains(ABOUT_SIMULATION) && page.ends_with(END));
    }

    #[test]
    fn figures_are_written_for_people() {
        let written = [0.0, 0.001_234, 1.234, 12.34, 123.4, 1234.0, 1_234_567.0].map(three);
        assert_eq!(written, ["0", "0.00123", "1.23", "12.3", "123", "1,234", "1,234,567"]);
        assert_eq!(thousands(999.4), "999");
    }
}
