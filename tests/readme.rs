//! The README says what the binary says.

use std::{fs, path::Path};

use sds_shim::config::VARIABLES;

#[test]
fn the_table_of_variables_is_that_of_the_binary() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let told: Vec<_> = readme.lines().skip_while(|line| !line.starts_with("| variable |")).skip(2).collect();
    let told: Vec<_> = told.into_iter().take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<_> = VARIABLES
        .iter()
        .map(|variable| {
            format!("| `{}` | {} | {} | {} |", variable.name, variable.kind, variable.default, variable.help)
        })
        .collect();
    assert_eq!(told, expected);
}

/// `CAPACITY_PAGE=1 make fleet` writes both.
#[test]
fn what_a_fleet_costs_is_what_the_capacity_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = |file: &str| {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let lines = text.lines().skip_while(|line| !line.starts_with("| what | 1,000 sidecars"));
        lines.take_while(|line| line.starts_with('|')).map(str::to_owned).collect::<Vec<_>>()
    };
    let told = table("README.md");
    assert!(told.len() > 5, "{told:?}");
    assert_eq!(told, table("src/manual/evidence/capacity.md"));
}

#[test]
fn what_it_takes_to_build_and_test_is_told() {
    let read = |file: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (readme, makefile) = (read("README.md"), read("Makefile"));
    let told = readme.lines().find(|line| line.starts_with("Both set up what they need")).unwrap();
    assert!(told.contains(concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or newer")), "{told}");
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
