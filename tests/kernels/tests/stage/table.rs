//! What one kernel gave, as rows.

use serde_json::Value;

use super::boot::Run;

/// What to read of one run while the others go on.
pub(crate) fn summary(run: &Run) -> String {
    rows(run).iter().map(|row| format!("  {}\n", row.join(" | "))).collect()
}

/// One row for each thing seen, with all phases of its scene in which it was seen.
fn rows(run: &Run) -> Vec<Vec<String>> {
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
        [place].into_iter().chain(facts).collect()
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

/// The kernel's version, as Debian counts it, and what it was booted with.
pub(crate) fn kernel(run: &Run) -> String {
    let version = run.kernel.version();
    let version = version.split(' ').nth(1).unwrap_or(&run.kernel.name);
    match run.kernel.parameters.as_str() {
        "" => version.to_owned(),
        parameters => format!("{version}, `{parameters}`"),
    }
}

/// A text as it is, everything else as JSON has it.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
