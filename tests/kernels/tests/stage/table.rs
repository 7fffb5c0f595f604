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

fn rows(run: &Run) -> Vec<Vec<String>> {
    let boot = run.facts.iter().find(|fact| fact["counting"].is_string());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let counting = boot.map_or_else(String::new, |boot| text(&boot["counting"]));
    let release = boot.map_or_else(|| run.kernel.name.clone(), |boot| text(&boot["kernel"]));
    let version = run.kernel.version();
    let version = version.split(' ').nth(1).unwrap_or_default();
    let kernel = match run.kernel.parameters.as_str() {
        "" => format!("{release} ({version})"),
        parameters => format!("{release} ({version}), `{parameters}`"),
    };
    let described = run.facts.iter().filter(|fact| fact["outcome"].is_string());
    let row = |fact: &Value| {
        let told = match fact["missing"].as_array() {
            Some(missing) if missing.is_empty() => text(&fact["memory"]["summary"]),
            Some(missing) => missing.iter().map(text).collect::<Vec<_>>().join("; "),
            None => fact["last"].as_array().and_then(|last| last.first()).map(text).unwrap_or_default(),
        };
        let shown = |value: &Value| if value.is_null() { "–".to_owned() } else { text(value) };
        vec![
            kernel.clone(),
            counting.clone(),
            scene(fact),
            text(&fact["count"]),
            text(&fact["outcome"]),
            shown(&fact["level"]),
            shown(&fact["pages"]),
            told.replace('|', "\\|"),
        ]
    };
    described.map(row).collect()
}

fn scene(fact: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let settings = fact["settings"].as_object().map(|settings| {
        settings.iter().map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join(", ")
    });
    let settings = settings.map(|settings| format!(" ({settings})")).unwrap_or_default();
    format!("{}: {}{settings}", text(&fact["scene"]), text(&fact["phase"]))
}
