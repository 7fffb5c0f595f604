//! Runs under valgrind's callgrind, which counts instructions in user mode: the same in every run, nearly, however busy
//! the machine is. Valgrind knows no secret memory, so the shim has the ordinary kind here, which takes the same
//! instructions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use nix::sys::signal::Signal;
use testkit::{Failure, OrFail};

use crate::{agent::Launch, sds::Crowd};

/// What share of all instructions a stack must take to be told.
const LEAST: f64 = 0.0005;
/// How deep stacks are followed.
const DEEPEST: usize = 80;

/// Who calls whom: the instructions of each function itself, and of its calls, with all that they call.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Graph {
    own: BTreeMap<String, f64>,
    calls: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Instructions of one run from exec to the end, with one client and this many rotations.
pub(crate) fn count(launch: Launch, rotations: usize) -> Result<f64, Failure> {
    let text = run(launch, rotations)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let total = total.and_then(|total| total.trim().parse().ok());
    total.ok_or_else(|| Failure::new("callgrind's output has no totals"))
}

/// The same, by function. These have names where the program has symbols.
pub(crate) fn graph(launch: Launch, rotations: usize) -> Result<Graph, Failure> {
    Ok(Graph::read(&run(launch, rotations)?))
}

/// What callgrind writes.
fn run(launch: Launch, rotations: usize) -> Result<String, Failure> {
    let out = launch.directory.join("callgrind.out");
    let file = format!("--callgrind-out-file={}", out.display());
    let floor = launch.is_floor();
    let launch =
        launch.env("SDS_SHIM_RENEW_PAUSE", "0s").env("SDS_SHIM_REQUIRE_LOCKED", "none").env("PATH", "/usr/bin:/bin");
    let launch = launch.under(&["/usr/bin/env", "valgrind", "--quiet", "--tool=callgrind", &file]);
    let mut running = launch.start()?;
    let (mut crowd, _) = Crowd::open(&mut running, 1)?;
    for _ in 0..rotations {
        running.signal(Signal::SIGUSR1)?;
        crowd.round().map_err(|failure| running.explain(failure))?;
    }
    drop(crowd);
    // The floor ends with its connection, the shim when it is told to.
    if floor {
        running.wait()?
    } else {
        running.terminate()?
    }
    fs::read_to_string(&out).or_fail(format!("read {}", out.display()))
}

impl Graph {
    /// Reads callgrind's format: a function's own costs stand behind its name, one a line; the line behind `calls=` is
    /// the cost of calls to the function in `cfn=`. A name is written once and then known by its number.
    fn read(text: &str) -> Self {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        let (mut function, mut callee, mut call) = ("", "", false);
        let mut graph = Self::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=").or(line.strip_prefix("cfn=")) {
                let (id, name) = name.split_once(' ').map_or((name, None), |(id, name)| (id, Some(name)));
                let name = *names.entry(id).or_insert(name.unwrap_or(id));
                *if line.starts_with("fn=") { &mut function } else { &mut callee } = name;
            } else if line.starts_with("calls=") {
                call = true;
            } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
                let cost: f64 = line.split(' ').nth(1).and_then(|cost| cost.parse().ok()).unwrap_or(0.0);
                let place = if std::mem::take(&mut call) {
                    graph.calls.entry(function.to_owned()).or_default().entry(callee.to_owned()).or_default()
                } else {
                    graph.own.entry(function.to_owned()).or_default()
                };
                *place += cost;
            }
        }
        graph
    }

    /// What a part of this run took that another run did not have, divided by how often it was done.
    pub(crate) fn beyond(mut self, other: &Self, times: f64) -> Self {
        for (function, own) in &mut self.own {
            *own = (*own - other.own.get(function).unwrap_or(&0.0)).max(0.0) / times;
        }
        for (function, calls) in &mut self.calls {
            let others = other.calls.get(function);
            for (callee, cost) in calls {
                let before = others.and_then(|others| others.get(callee)).unwrap_or(&0.0);
                *cost = (*cost - before).max(0.0) / times;
            }
        }
        self
    }

    /// The graph as stacks, the outermost function first, and their instructions, as flame graphs are drawn from.
    /// Callgrind does not know which caller's call went where: each gets its share of what the callee calls.
    pub(crate) fn stacks(&self) -> Vec<String> {
        let called: BTreeSet<_> = self.calls.values().flat_map(BTreeMap::keys).collect();
        let all: f64 = self.own.values().sum();
        let mut walk = Walk { graph: self, least: all * LEAST, path: Vec::new(), stacks: Vec::new() };
        for function in self.own.keys().chain(self.calls.keys()).collect::<BTreeSet<_>>() {
            if !called.contains(function) {
                walk.enter(function, self.total(function));
            }
        }
        walk.stacks
    }

    /// All that a function takes. Its calls to itself are left out: what they take is in its own cost and its other
    /// calls already.
    fn total(&self, function: &str) -> f64 {
        let others = self.calls.get(function).into_iter().flatten().filter(|(callee, _)| *callee != function);
        self.own.get(function).unwrap_or(&0.0) + others.map(|(_, cost)| cost).sum::<f64>()
    }
}

struct Walk<'a> {
    graph: &'a Graph,
    least: f64,
    path: Vec<&'a str>,
    stacks: Vec<String>,
}

impl<'a> Walk<'a> {
    /// Tells a call of this cost, unless it is too small, too deep, or a recursion: then it is its caller's own.
    fn enter(&mut self, function: &'a str, cost: f64) -> bool {
        if cost < self.least || self.path.len() > DEEPEST || self.path.contains(&function) {
            return false;
        }
        self.path.push(function);
        let share = cost / self.graph.total(function).max(cost);
        let mut own = cost;
        for (callee, all) in self.graph.calls.get(function).into_iter().flatten() {
            let theirs = all * share;
            if self.enter(callee, theirs) {
                own -= theirs;
            }
        }
        if own >= 1.0 {
            let path: Vec<_> = self.path.iter().map(|function| function.replace(';', ":")).collect();
            self.stacks.push(format!("{} {own:.0}", path.join(";")));
        }
        self.path.pop();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "events: Ir\nfl=(1) a.c\nfn=(1) main\n3 10\n+1 7\ncfn=(2) work\ncalls=2 0\n* 100\n\
                       cfn=(3) rest\ncalls=1 9\n9 50\nfn=(2)\n9 60\ncfn=(3)\ncalls=1 1\n* 40\nfn=(3)\n* 90\n";

    #[test]
    fn a_callee_is_shared_out_among_its_callers() {
        let stacks = Graph::read(RUN).stacks();
        assert_eq!(stacks, ["main;rest 50", "main;work;rest 40", "main;work 60", "main 17"]);
    }

    #[test]
    fn a_recursion_takes_nothing_from_other_calls() {
        let run = "fn=(1) main\n3 10\ncfn=(2) start\ncalls=1 0\n* 100\nfn=(2)\n9 5\ncfn=(2)\ncalls=1 0\n* 95\n\
                   cfn=(3) work\ncalls=1 0\n* 95\nfn=(3)\n* 95\n";
        assert_eq!(Graph::read(run).stacks(), ["main;start;work 95", "main;start 5", "main 10"]);
    }

    #[test]
    fn the_baseline_run_is_subtracted() {
        let twice = RUN.replace("3 10\n", "3 20\n");
        let stacks = Graph::read(&twice).beyond(&Graph::read(RUN), 2.0).stacks();
        assert_eq!(stacks, ["main 5"]);
    }
}
