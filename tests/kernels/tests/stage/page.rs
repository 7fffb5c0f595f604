//! The manual's page of what the kernels gave.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    boot::Run,
    table::{kernel, text},
};

/// What begins the part for arm64.
const ARM64: &str = "\n## On arm64\n";
/// What ends it.
const SEE: &str = "\nSee also:";

const HEAD: &str = "\
# Kernels

What the shipped binary holds and tells under Debian's kernels, which have no secret memory, count it for each process, or count it for all processes of a user together. `make test-kernels KERNELS_TABLE=1` writes this page from what it finds in QEMU; the same run holds every figure to what [keys in memory][keys] promises. All shims run as one user, with a limit of 8 MiB, unless a row says otherwise.
";

const LIVED: &str = "
## Shims that lived

*Lived* are those, of all that were started, that had the certificate of this step at its end. *Pages* are those of secret memory that one shim holds. *VmSize* and *VmRSS* are what a shim has mapped and resident then, in KiB. The process beside them is of the same user and takes all secret memory that it can get: before they start, and again while they run.

| kernel | pages of | counted for | step | shims | lived | level | pages | VmSize | VmRSS |
|---|---|---|---|---|---|---|---|---|---|
";

const KINDS: &str = "
## Kinds of keys

| kernel | key | level | pages | bytes in use at the most |
|---|---|---|---|---|
";

const LADDER: &str = "
## Limits of locked memory

What one shim does under each limit, by the least level that `SDS_SHIM_REQUIRE_LOCKED` demands: the level it then serves with, or its exit code. Each shim that serves also renews.

| kernels | limit | user | `none` | `locked` | `secret` |
|---|---|---|---|---|---|
";

const TOLD: &str = "
## What is told

Each text of what is missing, once, whatever the numbers in it, and the kernels under which it was told.

";

const FOOT: &str = "
See also: [keys in memory][keys] · [budgets][budgets] · [troubleshooting][troubleshooting]

[keys]: ../design/keys.md
[budgets]: budgets.md
[troubleshooting]: ../reference/troubleshooting.md
";

/// The page with the part of an architecture written anew, and that of the other as it was; `missing` are the kernels that
/// there is no run of.
pub(crate) fn page(before: &str, architecture: &str, runs: &[Run], missing: &[String]) -> String {
    let not_run = match missing {
        [] => String::new(),
        missing => format!("\nNot run with this binary yet: {}.\n", missing.join(", ")),
    };
    let cut: String = runs.iter().filter(|run| !run.complete).map(cut).collect();
    let (body, _) = before.split_once(SEE).unwrap_or((before, ""));
    let (amd64, arm64) = body.split_once(ARM64).unwrap_or((body, ""));
    let tables = [(LIVED, lived(runs)), (KINDS, kinds(runs)), (LADDER, ladder(runs)), (TOLD, told(runs))];
    // Who has played few scenes has few tables.
    let tables = tables.iter().filter(|(_, rows)| !rows.is_empty()).map(|(head, rows)| format!("{head}{rows}"));
    let written = not_run + &cut + &tables.collect::<String>();
    match architecture {
        "arm64" => [amd64, ARM64, &written.replace("\n## ", "\n### "), FOOT].concat(),
        _ => [HEAD, &written, ARM64, arm64, FOOT].concat(),
    }
}

/// What is missing of a guest that was ended before its last scene.
fn cut(run: &Run) -> String {
    let ended = |fact: &&Value| fact["seconds"].is_u64();
    let ended: Vec<_> = run.facts.iter().filter(ended).map(|fact| text(&fact["scene"])).collect();
    format!("\nThe guest of {} was ended by its time limit after {}.\n", kernel(run), ended.join(", "))
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn counting(run: &Run) -> String {
    run.facts.iter().find(|fact| fact["counting"].is_string()).map_or_else(String::new, |fact| text(&fact["counting"]))
}

/// Facts of these scenes that are of shims, not of their ends.
fn facts<'a>(run: &'a Run, scenes: &'a [&str]) -> impl Iterator<Item = &'a Value> {
    let of_shims = |fact: &&Value| fact["outcome"].is_string();
    run.facts.iter().filter(|fact| scenes.contains(&fact["scene"].as_str().unwrap_or_default())).filter(of_shims)
}

/// One row for each scene with many shims, or with one in a sidecar's settings, and each thing that was seen in it.
fn lived(runs: &[Run]) -> String {
    let mut rows = String::new();
    for run in runs {
        let mut steps: Vec<(&Value, String, Vec<&Value>)> = Vec::new();
        for fact in facts(run, &["one", "strict", "exec", "files", "many", "eater"]) {
            let phase = text(&fact["phase"]);
            match steps.iter_mut().find(|(first, known, _)| first["scene"] == fact["scene"] && *known == phase) {
                Some((.., facts)) => facts.push(fact),
                None => steps.push((fact, phase, vec![fact])),
            }
        }
        let page = run.facts.iter().find_map(|fact| fact["page"].as_u64()).unwrap_or(4096);
        let page = format!("{} KiB", page / 1024);
        let mut seen: Vec<(String, Vec<String>, [String; 6])> = Vec::new();
        for (first, phase, facts) in steps {
            let (scene, cells) = (scene(first), outcome(first, &facts));
            match seen.last_mut().filter(|(known, _, same)| *known == scene && *same == cells) {
                Some((_, phases, _)) => phases.push(phase),
                None => seen.push((scene, vec![phase], cells)),
            }
        }
        for (scene, phases, cells) in seen {
            let step = format!("{scene}: {}", phases.join(", "));
            rows.push_str(&row(
                &[[kernel(run), page.clone(), counting(run), step].as_slice(), cells.as_slice()].concat()
            ));
        }
    }
    rows
}

/// How many there were and how many of them lived, with which level and how many pages each, and what one has mapped and
/// resident.
fn outcome(first: &Value, facts: &[&Value]) -> [String; 6] {
    let number = |fact: &Value| fact["count"].as_u64().unwrap_or(0);
    let served: Vec<_> = facts.iter().filter(|fact| fact["outcome"] == "served").collect();
    let all: u64 = facts.iter().map(|fact| number(fact)).sum();
    let lived: u64 = served.iter().map(|fact| number(fact)).sum();
    let shims = first["settings"]["shims"].as_u64().unwrap_or(all);
    let each = |name: &str| {
        let mut values: Vec<_> = served.iter().map(|fact| text(&fact[name])).collect();
        values.sort();
        values.dedup();
        values.join(", ")
    };
    [shims.to_string(), lived.to_string(), each("level"), each("pages"), each("VmSize"), each("VmRSS")]
}

/// A scene in words.
fn scene(fact: &Value) -> String {
    match fact["scene"].as_str() {
        Some("one") => "one".to_owned(),
        Some("strict") => "one with `SDS_SHIM_SECCOMP=strict`".to_owned(),
        Some("exec") => "one before a command (`exec`)".to_owned(),
        Some("files") => "one with mounted files".to_owned(),
        Some("many") => "many".to_owned(),
        _ => match fact["settings"]["eater"].as_u64() {
            Some(had) => format!("beside a process that had taken {had} pages"),
            None => "no such process".to_owned(),
        },
    }
}

fn kinds(runs: &[Run]) -> String {
    let mut rows = String::new();
    for run in runs {
        for fact in facts(run, &["kinds"]).filter(|fact| fact["phase"] == "renewed") {
            let cells = match fact["outcome"].as_str() {
                Some("served") => [&fact["level"], &fact["pages"], &fact["memory"]["secret_peak_bytes"]].map(text),
                _ => ["no key within the two minutes it was given".to_owned(), "–".to_owned(), "–".to_owned()],
            };
            rows.push_str(&row(&[[kernel(run), text(&fact["settings"]["kind"])].as_slice(), &cells].concat()));
        }
    }
    rows
}

/// Rows that are the same under several kernels stand once, as do those that are the same for several users.
fn ladder(runs: &[Run]) -> String {
    /// Order, limit, user, and what came of the three levels.
    type Line = (usize, String, String, [String; 3]);
    let mut groups: Vec<(Vec<Line>, Vec<String>)> = Vec::new();
    for run in runs {
        let mut lines: Vec<Line> = Vec::new();
        for fact in facts(run, &["ladder"]) {
            let settings = &fact["settings"];
            let (limit, user) = (text(&settings["memlock"]), text(&settings["user"]));
            let level = ["none", "locked", "secret"].iter().position(|level| settings["required"] == **level);
            let outcome = match fact["outcome"].as_str() {
                Some("served") => text(&fact["level"]),
                Some(end) => end.to_owned(),
                None => continue,
            };
            let at = lines.iter().position(|(_, known, by, _)| *known == limit && *by == user).unwrap_or_else(|| {
                lines.push((lines.len(), limit, user, Default::default()));
                lines.len() - 1
            });
            if let Some(cell) = level.and_then(|level| lines[at].3.get_mut(level)) {
                // What it renewed with, where that is another level.
                let again = !cell.is_empty() && *cell != outcome;
                *cell = if again { format!("{cell}, then {outcome}") } else { outcome };
            }
        }
        let lines = merged(lines);
        match groups.iter_mut().find(|(known, _)| *known == lines) {
            Some((_, kernels)) => kernels.push(kernel(run)),
            None => groups.push((lines, vec![kernel(run)])),
        }
    }
    let mut rows = String::new();
    for (lines, kernels) in groups {
        for (_, limit, user, outcomes) in lines {
            let limit = if limit == "unlimited" { limit } else { format!("{limit} KiB") };
            rows.push_str(&row(&[[kernels.join("; "), limit, user].as_slice(), outcomes.as_slice()].concat()));
        }
    }
    rows
}

/// Users of one limit with the same outcomes in one line.
fn merged(lines: Vec<(usize, String, String, [String; 3])>) -> Vec<(usize, String, String, [String; 3])> {
    let mut merged: Vec<(usize, String, String, [String; 3])> = Vec::new();
    for (order, limit, user, outcomes) in lines {
        match merged.iter_mut().find(|(_, known, _, same)| *known == limit && *same == outcomes) {
            Some((_, _, users, _)) => users.push_str(&format!(", {user}")),
            None => merged.push((order, limit, user, outcomes)),
        }
    }
    merged
}

/// The texts of what is missing, whatever numbers are in them.
fn told(runs: &[Run]) -> String {
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for run in runs {
        for fact in run.facts.iter() {
            for missing in fact["missing"].as_array().into_iter().flatten().map(text) {
                let alike = missing.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect();
                let (_, kernels) = texts.entry(alike).or_insert_with(|| (missing, Vec::new()));
                if !kernels.contains(&run.kernel.name) {
                    kernels.push(run.kernel.name.clone());
                }
            }
        }
    }
    texts.into_values().map(|(text, kernels)| format!("- {text} ({})\n", kernels.join(", "))).collect()
}
