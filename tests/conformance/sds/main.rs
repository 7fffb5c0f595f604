//! One suite of rules for whoever serves SDS to a sidecar, black box: it runs against the shim in every test run, and
//! by `make conformance-istio` against Istio's own agent as well, which writes the table of both into the manual.

mod rules;
mod subject;

use std::{env, fmt::Write as _, fs, path::PathBuf, sync::Arc, time::Duration};

use rules::{RULES, Rule};
use subject::Implementation;
use testkit::workspace;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

/// Rules that are looked at side by side.
const AT_A_TIME: usize = 8;
/// How long one rule may take: longer than any wait within it.
const LIMIT: Duration = Duration::from_secs(100);

/// How the page begins, and how it ends.
const INTRODUCTION: &str = "\
# Conformance

Which rules of SDS, of the call to the CA and of Istio's settings the shim and Istio's own agent keep. One suite \
of black-box rules (`tests/conformance/sds`) runs against both, with the same development CA and the environment \
that Istio's injector sets. `make conformance-istio` writes this page; `make test` holds the shim to it.";
const END: &str = "
See also: [differences from Istio's agent][differences] · [behaviour, case by case][behaviour] · \
[capacity][capacity]

[differences]: differences.md
[behaviour]: ../reference/behaviour.md
[capacity]: capacity.md
";

/// Why a rule does not hold; nothing when it does.
type Broken = Option<String>;

async fn hold_all(of: Implementation) -> Vec<Broken> {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut running = JoinSet::new();
    for (index, rule) in RULES.iter().enumerate() {
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire_owned().await.expect("nobody closes it");
            // In a task of its own, so that a failed assertion is one rule's matter.
            let held = tokio::spawn(timeout(LIMIT, (rule.check)(of))).await;
            let broken = match held {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(failure))) => Some(failure.to_string()),
                Ok(Err(_)) => Some(format!("not decided within {LIMIT:?}")),
                Err(error) => Some(error.to_string()),
            };
            (index, broken)
        });
    }
    let mut all = running.join_all().await;
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, broken)| broken).collect()
}

fn table_file() -> PathBuf {
    workspace().join("src/manual/evidence/conformance.md")
}

fn table(ours: &[Broken], theirs: &[Broken]) -> String {
    let word = |broken: &Broken| if broken.is_none() { "yes" } else { "no" };
    let held = |all: &[Broken]| all.iter().filter(|broken| broken.is_none()).count();
    let mut text = format!(
        "{INTRODUCTION}\n\nOf {} rules ours keeps {}, Istio's agent {}.\n",
        RULES.len(),
        held(ours),
        held(theirs)
    );
    let mut group = "";
    for ((rule, ours), theirs) in RULES.iter().zip(ours).zip(theirs) {
        if rule.group != group {
            group = rule.group;
            let _ = write!(text, "\n## {group}\n\n| rule | ours | Istio's agent |\n|---|---|---|\n");
        }
        let _ = writeln!(text, "| {} | {} | {} |", rule.text, word(ours), word(theirs));
    }
    text + END
}

fn tell(who: &str, all: &[Broken]) -> usize {
    let broken = RULES.iter().zip(all).filter_map(|(rule, broken)| Some((rule, broken.as_ref()?)));
    broken.inspect(|(Rule { group, text, .. }, why)| println!("{who}: {group}: {text}: NO: {why}\n")).count()
}

/// With `CONFORMANCE_TABLE` set the table is made anew.
#[tokio::test]
async fn the_shim_keeps_every_rule_and_the_table_matches() {
    let ours = hold_all(Implementation::Ours).await;
    assert_eq!(tell("ours", &ours), 0, "rules of {} are broken", RULES.len());
    if env::var_os("CONFORMANCE_TABLE").is_some() {
        let theirs = hold_all(Implementation::PilotAgent).await;
        println!("Istio's agent breaks {} of {} rules", tell("Istio's agent", &theirs), RULES.len());
        fs::write(table_file(), table(&ours, &theirs)).expect("the manual can be written");
    }
    let written = fs::read_to_string(table_file()).expect("run `make conformance-istio`");
    assert!(
        written.starts_with(INTRODUCTION) && written.ends_with(END),
        "it has other texts: run `make conformance-istio`"
    );
    let rules: Vec<_> = written.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    let rules: Vec<_> = rules.into_iter().filter(|rule| *rule != "rule").collect();
    let expected: Vec<_> = RULES.iter().map(|rule| rule.text).collect();
    assert_eq!(rules, expected, "the table is of other rules: run `make conformance-istio`");
}

#[test]
fn there_are_many_rules_without_duplicates() {
    assert!(RULES.len() >= 60, "{}", RULES.len());
    for (index, rule) in RULES.iter().enumerate() {
        assert!(!RULES[..index].iter().any(|other| other.text == rule.text), "{}", rule.text);
    }
}
