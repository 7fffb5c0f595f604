//! The table of what the kernels gave.

use serde_json::Value;

use super::boot::Run;

const HEAD: &str = "\
The shipped binary under Debian's kernels, in QEMU, as `make test-kernels KERNELS_TABLE=1` found it. *Counted* is whom the
kernel counts secret memory for: *none* has any, each *process*, or all processes of a *user* together. *Pages* are those
of secret memory that one shim holds, of 4 KiB each.

";

const COLUMNS: &str = "\
| kernel | counted | scene | shims | outcome | level | pages | told |
|---|---|---|---|---|---|---|---|
";

/// The whole page.
pub(crate) fn page(runs: &[Run]) -> String {
    let mut page = HEAD.to_owned() + COLUMNS;
    for run in runs {
        rows(run).iter().for_each(|row| page.push_str(&format!("| {} |\n", row.join(" | "))));
    }
    page
}

/// What to read of one run while the others go on.
pub(crate) fn summary(run: &Run) -> String {
    rows(run).iter().map(|row| format!("  {}\n", row[1..].join(" | "))).collect()
}

/// One row for each thing seen, with all phases of its scene in which it was seen.
fn rows(run: &Run) -> Vec<Vec<String>> {
    let boot = run.facts.iter().find(|fact| fact["counting"].is_string());
    let counting = boot.map_or_else(String::new, |boot| text(&boot["counting"]));
    let release = boot.map_or_else(|| run.kernel.name.clone(), |boot| text(&boot["kernel"]));
    let version = run.kernel.version();
    let version = version.split(' ').nth(1).unwrap_or_default();
    let kernel = match run.kernel.parameters.as_str() {
        "" => format!("{release} ({version})"),
        parameters => format!("{release} ({version}), `{parameters}`"),
    };
    let mut seen: Vec<(Vec<String>, String, Vec<String>)> = Vec::new();
    for fact in run.facts.iter().filter(|fact| fact["outcome"].is_string()) {
        let (scene, phase, facts) = (scene(fact), text(&fact["phase"]), facts(fact));
        match seen.iter_mut().find(|(_, known, others)| known == &scene && others == &facts) {
            Some((phases, ..)) => phases.push(phase),
            None => seen.push((vec![phase], scene, facts)),
        }
    }
    let row = |(phases, scene, facts): (Vec<String>, String, Vec<String>)| {
        let place = format!("{scene}: {}", phases.join(", "));
        [kernel.clone(), counting.clone(), place].into_iter().chain(facts).collect()
    };
    seen.into_iter().map(row).collect()
}

/// How many shims, their outcome, level and pages, and what is told of them.
fn facts(fact: &Value) -> Vec<String> {
    let told = match fact["missing"].as_array() {
        Some(missing) if missing.is_empty() => text(&fact["memory"]["summary"]),
        Some(missing) => missing.iter().map(text).collect::<Vec<_>>().join("; "),
        // The last line, which begins with the time where it is one of the log.
        None => text(&fact["last"][0]).split_inclusive(' ').skip_while(|word| word.starts_with("20")).collect(),
    };
    let shown = |value: &Value| if value.is_null() { "–".to_owned() } else { text(value) };
    let plain = [&fact["count"], &fact["outcome"], &fact["level"], &fact["pages"]].map(shown);
    plain.into_iter().chain([told.replace('|', "\\|")]).collect()
}

/// The scene with its settings, but for what came of its own.
fn scene(fact: &Value) -> String {
    let settings = fact["settings"].as_object().into_iter().flatten().filter(|(name, _)| *name != "code");
    let settings: Vec<_> = settings.map(|(name, value)| format!("{name} {}", text(value))).collect();
    match settings.is_empty() {
        true => text(&fact["scene"]),
        false => format!("{} ({})", text(&fact["scene"]), settings.join(", ")),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
