//! The documents say what the binary and the Makefile say.

mod document;
mod links;

use std::{fs, path::Path};

use sds_shim::config::VARIABLES;

#[test]
fn the_table_of_variables_is_that_of_the_binary() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/reference/environment.md");
    let page = fs::read_to_string(page).unwrap();
    let told: Vec<_> = page.lines().skip_while(|line| !line.starts_with("| variable |")).skip(2).collect();
    let told: Vec<_> = told.into_iter().take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<_> = VARIABLES
        .iter()
        .map(|variable| {
            format!("| `{}` | {} | {} | {} |", variable.name, variable.kind, variable.default, variable.help)
        })
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn what_it_takes_to_build_and_test_is_told() {
    let read = |file: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (page, makefile) = (read(".github/CONTRIBUTING.md"), read("Makefile"));
    let told = page.lines().find(|line| line.starts_with("Both set up what they need")).unwrap();
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
