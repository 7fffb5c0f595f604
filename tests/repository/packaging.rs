//! The alerts and the dashboard, held by Prometheus' own tool, and by what the documentation says that there is; and
//! the Helm chart, as far as that takes no Helm.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sds_shim::config::VARIABLES;
use serde_json::{Value, json};
use testkit::{scratch::Scratch, workspace};

fn packaging(path: &str) -> PathBuf {
    workspace().join("packaging").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn promtool(arguments: &[&str], file: &Path) {
    let directory =
        std::env::var_os("PROMETHEUS_DIR").map_or_else(|| workspace().join("target/prometheus"), PathBuf::from);
    let ran = Command::new(directory.join("promtool")).args(arguments).arg(file).output();
    let ran = ran.expect("run tests/testkit/install-prometheus.sh");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && !told.contains("FAILED"), "{arguments:?}: {told}");
}

/// Names of metrics in a text, with the suffixes of histograms taken off.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("sds_shim_") || word.starts_with("istio_agent_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

fn documented() -> BTreeSet<String> {
    let page = read(&workspace().join("src/manual/reference/metrics.md"));
    let rows: String = page.lines().filter(|line| line.starts_with("| `")).collect();
    metrics(&rows)
}

fn dashboard() -> Vec<Value> {
    let dashboard: Value =
        serde_json::from_str(&read(&packaging("grafana/sds-shim.json"))).expect("the dashboard is JSON");
    dashboard["panels"].as_array().expect("it has panels").clone()
}

#[test]
fn the_alerts_fire_when_they_should() {
    promtool(&["check", "rules"], &packaging("prometheus/alerts.yaml"));
    promtool(&["test", "rules"], &packaging("prometheus/alerts.test.yaml"));
}

#[test]
fn every_alert_is_tested() {
    let tests = read(&packaging("prometheus/alerts.test.yaml"));
    let alerts = read(&packaging("prometheus/alerts.yaml"));
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 5);
    let untested: Vec<_> = names.into_iter().filter(|name| !tests.contains(name)).collect();
    assert!(untested.is_empty(), "{untested:?}");
}

#[test]
fn the_queries_of_the_dashboard_are_valid() {
    let scratch = Scratch::new("tests").expect("a directory");
    let mut rules = Vec::new();
    for panel in dashboard() {
        for target in panel["targets"].as_array().expect("a panel has queries") {
            rules.push(json!({ "record": format!("panel:query:{}", rules.len()), "expr": target["expr"] }));
        }
    }
    assert!(rules.len() > 10);
    // JSON is YAML as well.
    let file = scratch.path().join("rules.yaml");
    fs::write(&file, json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string())
        .expect("write the rules");
    promtool(&["check", "rules"], &file);
}

#[test]
fn alerts_and_dashboard_speak_of_metrics_that_exist() {
    let known = documented();
    for file in ["prometheus/alerts.yaml", "prometheus/alerts.test.yaml", "grafana/sds-shim.json"] {
        let used = metrics(&read(&packaging(file)));
        assert!(used.len() > 5, "{file}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn each_panel_is_described() {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels: Vec<_> = dashboard()
        .iter()
        .map(|panel| format!("- **{}.** {}", text(&panel["title"]), text(&panel["description"])))
        .collect();
    let page = read(&workspace().join("src/manual/reference/dashboard.md"));
    let told: Vec<_> = page.lines().filter(|line| line.starts_with("- ")).collect();
    assert_eq!(told, panels);
}

/// Who looks for a message finds it: what is quoted as a symptom is what the program says.
#[test]
fn the_symptoms_are_what_is_said() {
    /// What the kernel and Envoy say, and what we put together.
    const ELSEWHERE: &[&str] = &[
        "assert failure",
        "inotify_fd_ >= 0",
        "Permission denied",
        "Operation not permitted",
        "type=1326",
        "comm=\"sds-shim\"",
        "Read-only file system",
        "cannot bind a socket for",
        "the CA answered PERMISSION_DENIED",
    ];
    let mut sources = String::new();
    let mut pending = vec![workspace().join("src")];
    while let Some(path) = pending.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => pending.extend(entries.map(|entry| entry.expect("an entry").path())),
            // Not the manual, which lies there too: it would vouch for itself.
            Err(_) if path.extension().is_some_and(|extension| extension == "rs") => sources += &read(&path),
            Err(_) => {}
        }
    }
    // A long message is broken over lines.
    let sources = sources.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" ");
    let page = read(&workspace().join("src/manual/reference/troubleshooting.md"));
    let mut quoted = 0;
    for cell in page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()) {
        for symptom in cell.split('`').skip(1).step_by(2) {
            for part in symptom.split(['…', ':', ';']).map(|part| part.trim().trim_start_matches("default ")) {
                assert!(sources.contains(part) || ELSEWHERE.contains(&part), "{part:?} is said nowhere");
                quoted += 1;
            }
        }
    }
    assert!(quoted > 100, "{quoted}");
}

#[test]
fn the_chart_knows_the_variables_of_the_binary() {
    let schema: Value = serde_json::from_str(&read(&packaging("helm/sds-shim/values.schema.json"))).expect("JSON");
    let env = &schema["properties"]["env"];
    let named = |part: &str| env[part].as_object().expect("it is there").keys().cloned().collect::<BTreeSet<_>>();
    let (families, single): (BTreeSet<_>, BTreeSet<_>) =
        VARIABLES.iter().map(|variable| variable.name.to_owned()).partition(|name| name.ends_with('*'));
    assert_eq!(named("properties"), single);
    let families = families.into_iter().map(|name| format!("^{}.+$", name.trim_end_matches('*')));
    assert_eq!(named("patternProperties"), families.collect());
    assert_eq!(env["additionalProperties"], false);
}

/// Who is ended while the CA is away forgets how long to wait, and then waits for kubelet as well.
#[test]
fn start_up_probes_outlast_an_outage_of_the_ca() {
    const DAY: u64 = 86400;
    let commands = read(&workspace().join("src/manual/reference/commands.md"));
    let probes: Vec<_> = commands.split("  startupProbe:\n").skip(1).collect();
    assert!(!probes.is_empty());
    for probe in probes {
        let fields = probe.lines().take_while(|line| line.starts_with("    "));
        let fields: Vec<_> = fields.filter_map(|line| line.trim().split_once(": ")).collect();
        let number = |name: &str| {
            let (_, value) = fields.iter().find(|(field, _)| *field == name).expect("it is told");
            value.split(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("it is a number")
        };
        assert!(number("periodSeconds") * number("failureThreshold") >= DAY, "{fields:?}");
    }
}

/// With --reuse-values a chart has no value that it did not have before.
#[test]
fn upgrades_of_the_chart_begin_with_its_own_values() {
    let mut upgrades = 0;
    let guide = "src/manual/guide";
    for file in
        [&format!("{guide}/kubernetes.md"), &format!("{guide}/istio.md"), "packaging/helm/sds-shim/templates/NOTES.txt"]
    {
        let text = read(&workspace().join(file));
        for command in text.split("helm upgrade ").skip(1).map(|rest| rest.split("--set").next().unwrap_or(rest)) {
            if command.starts_with("istiod ") {
                continue;
            }
            assert!(command.contains("--reset-then-reuse-values"), "{file}: {command}");
            upgrades += 1;
        }
    }
    assert_eq!(upgrades, 4);
}

/// A program that its user can read is one that its user can attach to, until it has closed itself to others.
#[test]
fn the_binary_is_installed_so_that_its_user_cannot_read_it() {
    let mut installed = 0;
    let guide = ["../README.md", "../src/manual/guide/sidecar.md", "../src/manual/guide/virtual_machine.md"];
    for file in guide.into_iter().chain(["image/Containerfile"]) {
        let text = read(&packaging(file));
        let lines = text.lines().filter(|line| line.starts_with("COPY ") || line.starts_with("install "));
        for line in lines.filter(|line| line.ends_with("sds-shim /usr/local/bin/sds-shim")) {
            assert!(line.contains(" --chmod=0111 ") || line.contains(" -m 111 "), "{file}: {line}");
            installed += 1;
        }
    }
    assert_eq!(installed, 5);
    assert!(read(&packaging("systemd/sds-shim.service")).contains("mode 0111"));
}

/// What is shipped in the chart lies where it always was, too.
#[test]
fn the_chart_has_the_alerts_and_the_dashboard() {
    for (path, file) in [("prometheus/alerts.yaml", "alerts.yaml"), ("grafana/sds-shim.json", "dashboard.json")] {
        assert_eq!(read(&packaging(path)), read(&packaging("helm/sds-shim/files").join(file)));
    }
    let version = format!("appVersion: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(read(&packaging("helm/sds-shim/Chart.yaml")).contains(&version));
}
