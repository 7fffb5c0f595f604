//! The README says what the evidence says, and what it takes to build.

use crate::document::Document;

#[test]
fn the_readme_is_short() {
    let readme = Document::read("README.md").text;
    assert!(readme.lines().count() <= 170 && readme.len() <= 10_000, "{} bytes", readme.len());
}

/// What it says of others is what the evidence says.
#[test]
fn the_readme_quotes_the_evidence() {
    let readme = Document::read("README.md").text;
    let capacity = Document::read("src/manual/evidence/capacity.md").text;
    let row = capacity.lines().find(|line| line.starts_with("| CA calls around an outage of 1 h")).unwrap();
    let largest = row.split(" | ").nth(3).unwrap().replace(['*', ','], "");
    let (ours, theirs) = largest.split_once(" / ").unwrap();
    let times = theirs.parse::<f64>().unwrap() / ours.parse::<f64>().unwrap();
    let told = format!("costs a fleet {times:.0} times fewer CA calls");
    assert!(readme.contains(&told), "the README does not say {told:?}");

    let conformance = Document::read("src/manual/evidence/conformance.md").text;
    let line = conformance.lines().find(|line| line.starts_with("Of ")).unwrap();
    let told = line.replace("rules ours keeps", "black-box rules the shim keeps").replace("Istio's agent", "the agent");
    assert!(readme.contains(told.trim_end_matches('.')), "the README does not say {told:?}");
}

#[test]
fn build_and_test_requirements_are_documented() {
    let (page, makefile) = (Document::read(".github/CONTRIBUTING.md").text, Document::read("Makefile").text);
    let told = page.split("\n## ").find(|section| section.starts_with("Building\n")).unwrap();
    for told in [told, &Document::read("README.md").text] {
        assert!(told.contains(concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or newer")), "{told}");
    }
    let mut packages = 0;
    for line in makefile.lines().filter_map(|line| line.strip_prefix("\t@$(PACKAGES) ")) {
        let named = line.strip_prefix('"').and_then(|line| line.split('"').next());
        for package in named.unwrap_or_else(|| line.split(' ').next().unwrap()).split(' ') {
            // As a person calls it.
            let name = if package == "python3" { "Python 3" } else { package };
            assert!(told.contains(name), "{package} is not in: {told}");
            packages += 1;
        }
    }
    assert!(packages > 8, "{packages}");
}
