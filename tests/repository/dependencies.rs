//! What the shipped binary is built from: licences, duplicates, and that every dependency has a reason.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Licences that may be linked into the shipped binary.
const LICENCES: &[&str] = &["Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unicode-3.0", "Zlib", "0BSD"];
/// What the project is built on; everything else gives its reason in `Cargo.toml`.
const BASE: &[&str] = &["tokio", "hyper", "tonic", "prost", "openssl", "nix", "serde_json"];

/// Name, version and licence of every crate that is linked into the binary.
fn linked() -> Vec<(String, String, String)> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "sds-shim", "--edges", "normal,no-proc-macro", "--prefix", "none"])
        .args(["--locked", "--offline", "--format", "{p}\t{l}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let mut crates: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (package, licence) = line.trim_end_matches(" (*)").split_once('\t')?;
            let mut words = package.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned(), licence.trim_end_matches(" (*)").to_owned()))
        })
        .collect();
    crates.sort();
    crates.dedup();
    assert!(crates.len() > 20, "cargo tree printed {text}");
    crates
}

#[test]
fn licences_are_among_the_allowed_ones() {
    for (name, version, licence) in linked() {
        let offered = licence.replace(" OR ", "/");
        let allowed = offered.split('/').any(|choice| {
            choice
                .trim_matches(['(', ')', ' '])
                .split(" AND ")
                .all(|one| LICENCES.contains(&one.trim_matches(['(', ')', ' '])))
        });
        assert!(allowed, "{name} {version} has the licence {licence:?}");
    }
}

#[test]
fn no_crate_is_linked_in_two_versions() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, version, _) in linked() {
        versions.entry(name).or_default().push(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "{versions:?}");
}

#[test]
fn every_dependency_beyond_the_base_gives_its_reason() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let mut reason = false;
    for line in section.lines().filter(|line| !line.trim().is_empty()) {
        let name = line.split(['=', '.', ' ']).next().unwrap();
        let base =
            BASE.iter().any(|base| name == *base || name.starts_with(&format!("{base}-")) && name != "tokio-openssl");
        let ours = line.contains("path =");
        assert!(line.starts_with('#') || base || ours || reason, "{name} has no reason beside it");
        reason = line.starts_with('#');
    }
}
