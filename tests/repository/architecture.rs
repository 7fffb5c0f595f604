//! The walls between the modules, read from their imports (`src/manual/design/architecture.md` draws them).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each module may import of the others. `app` puts all together and may import everything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("budget", &[]),
    ("bounded", &["budget"]),
    ("clock", &[]),
    ("identity", &["bounded", "budget", "clock"]),
    ("config", &["identity"]),
    ("cli", &["client", "config"]),
    ("socket_file", &[]),
    ("wire", &["budget"]),
    ("client", &["bounded", "clock", "wire"]),
    ("check", &["bounded", "budget", "clock", "config", "identity", "memory"]),
    ("log", &["clock", "config"]),
    ("memory", &["config"]),
    ("store", &["identity"]),
    ("status", &["clock", "store"]),
    ("admin", &["budget", "clock", "config", "identity", "memory", "socket_file", "status", "store", "wire"]),
    ("files", &["bounded", "budget", "clock", "config", "identity", "memory", "store"]),
    ("resolve", &["bounded"]),
    ("ca", &["bounded", "budget", "clock", "config", "identity", "resolve", "wire"]),
    ("spiffe", &["bounded", "budget", "identity", "wire"]),
    ("rotation", &["budget", "ca", "clock", "config", "files", "identity", "memory", "spiffe", "status", "store"]),
    ("sandbox", &["config"]),
    ("sds", &["bounded", "budget", "clock", "config", "identity", "socket_file", "status", "store"]),
    ("workload_api", &["clock", "identity", "sds", "status", "store"]),
    ("on_change", &["clock", "config", "status", "store", "wire"]),
    ("supervise", &["config", "store"]),
];

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut broken = Vec::new();
    for (module, files) in modules() {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
            assert!(
                ["app", "lib", "main", "manual"].contains(&module.as_str()),
                "module {module} has no place in the picture"
            );
            continue;
        };
        for (file, text) in files {
            for import in imports(&text).difference(&allowed.iter().map(ToString::to_string).collect()) {
                if *import != module {
                    broken.push(format!("{}: {import}", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "imports across the walls: {broken:#?}");
}

#[test]
fn generated_types_stay_where_protocols_are_spoken() {
    only_in("sds_shim_proto", &["ca", "client", "sds"]);
}

#[test]
fn only_main_chooses_the_exit_code() {
    only_in("ExitCode", &["main"]);
}

/// Levels can be chosen for each module that says something.
#[test]
fn the_scopes_of_the_log_are_the_modules_that_use_it() {
    let speaks =
        |(_, files): &(String, Vec<(PathBuf, String)>)| files.iter().any(|(_, text)| text.contains("tracing::"));
    let found: Vec<_> = modules().into_iter().filter(speaks).map(|(module, _)| module).collect();
    let expected: Vec<_> = found.iter().map(String::as_str).filter(|module| *module != "log").collect();
    assert_eq!(expected, sds_shim::config::SCOPES);
}

#[test]
fn unsafe_stays_in_the_locked_crate() {
    for file in ["src/lib.rs", "src/main.rs", "proto/src/lib.rs"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{file}");
    }
}

/// What tests link cannot share the shim's mistakes. The simulated fleet is the exception: it has no decisions of its own,
/// but the pure functions that ship.
#[test]
fn testkit_links_nothing_of_the_shim_but_the_renewal_schedule() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    for kit in ["tests/testkit/Cargo.toml", "tests/development-ca/Cargo.toml"] {
        assert!(!read(kit).lines().any(|line| line.starts_with("sds-shim =")), "{kit}");
    }
    let mut pending = vec![root().join("tests/fleet/src")];
    let mut uses = String::new();
    while let Some(path) = pending.pop() {
        match path.is_dir() {
            true => pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())),
            false => {
                let text = fs::read_to_string(path).unwrap();
                let found = text.split(';').filter(|statement| statement.contains("sds_shim::"));
                uses.extend(found.flat_map(|statement| statement.split_whitespace()));
            }
        }
    }
    let decisions = "rotation::{Backoff,Setback,Strain,renewal_after,wait_after},}";
    assert!(uses.ends_with(&format!("usesds_shim::{{config::Schedule,{decisions}")), "{uses}");
    assert_eq!(uses.matches("sds_shim").count(), 1);
}

#[test]
fn main_stays_thin() {
    let main = fs::read_to_string(root().join("src/main.rs")).unwrap();
    let (_lints, main) = main.split_once("\nuse ").unwrap();
    let lines = main.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 60, "{lines} lines");
}

#[test]
fn no_file_is_long() {
    const LINES: usize = 400;
    let (mut pending, mut looked_at) = (["src", "tests", "proto/src"].map(|place| root().join(place)).to_vec(), 0);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("generated") && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let lines = fs::read_to_string(&path).unwrap().lines().count();
                assert!(lines <= LINES, "{} has {lines} lines", path.display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 300, "{looked_at}");
}

#[test]
fn nothing_else_stands_at_the_top_level() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "proto",
        "packaging",
        "tests",
        "Makefile",
        "README.md",
        "LICENSE",
        "findings",
    ];
    let listed = std::process::Command::new("git").args(["ls-files"]).current_dir(root()).output();
    let listed = listed.map(|ran| String::from_utf8(ran.stdout).unwrap()).unwrap_or_default();
    let mut top: BTreeSet<_> = listed.lines().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
    if top.is_empty() {
        // No git, or a tree that it does not know or trust.
        top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        top.remove("target");
    }
    assert!(top.contains("Cargo.toml"), "{top:?}");
    let other: Vec<_> = top.iter().filter(|name| !name.starts_with('.') && !allowed.contains(&name.as_str())).collect();
    assert!(other.is_empty(), "{other:?}");
}

/// Fails when `text` stands in shipped code outside of `modules`.
fn only_in(text: &str, allowed: &[&str]) {
    for (module, files) in modules() {
        if allowed.contains(&module.as_str()) {
            continue;
        }
        for (file, content) in files {
            assert!(!content.contains(text), "{} has {text:?}", file.display());
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources of each top-level module of the main crate, comments and unit tests left out.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let source = root().join("src");
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let mut pending = vec![source.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let inside = path.strip_prefix(&source).unwrap();
            if inside.starts_with("locked") {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let module = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                found.entry(module).or_default().push((path, code.join("\n")));
            }
        }
    }
    assert!(found.len() > 5, "the sources were not found");
    found
}

/// The modules named after `crate::`, also in a group.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    for (at, marker) in code.match_indices("crate::") {
        let rest = &code[at + marker.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && c.is_alphabetic() => {
                    found.insert(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// Types that hold bytes of keys, tokens or other credentials: nothing may print, clone or serialise them.
const SECRETS: &[&str] = &[
    "BearerToken",
    "CaHeader",
    "CertificateRequest",
    "ClientCertificate",
    "Content",
    "Credential",
    "KeyDer",
    "KeyText",
    "X509Svid",
];

#[test]
fn secrets_cannot_be_printed_or_cloned() {
    let code: String = modules().into_values().flatten().map(|(_, code)| code + "\n").collect();
    for secret in SECRETS {
        let kinds =
            ["struct", "enum"].iter().flat_map(|kind| [' ', '('].map(|next| format!("pub {kind} {secret}{next}")));
        let kind = kinds.filter_map(|kind| code.find(&kind)).next();
        let at = kind.unwrap_or_else(|| panic!("there is no {secret}"));
        let before = code[..at].lines().next_back().unwrap_or_default();
        assert!(!before.replace("#[derive(Default)]", "").contains("derive"), "{secret}: {before}");
        for forbidden in ["Clone for", "Display for", "Serialize for", "Copy for"] {
            assert!(!code.contains(&format!("{forbidden} {secret} ")), "{forbidden} {secret}");
        }
    }
    // Those that say that they exist and nothing more.
    const NAMED: [(&str, &str); 5] = [
        ("BearerToken", "bytes"),
        ("CaHeader", "self.name"),
        ("KeyDer", "bytes"),
        ("KeyText", "bytes"),
        ("Secret", "bytes"),
    ];
    for (named, shows) in NAMED {
        let written = code.split(&format!("fmt::Debug for {named} ")).nth(1).unwrap_or_default();
        let written = written.split("\n}").next().unwrap_or_default();
        assert!(
            written.contains(shows)
                && !written.contains("value")
                && !written.replace("jwt.len()", "").contains("jwt")
                && !written.contains("{:?}"),
            "{named}"
        );
    }
    for secret in SECRETS.iter().filter(|secret| NAMED.iter().all(|(named, _)| named != *secret)) {
        assert!(!code.contains(&format!("Debug for {secret} ")), "Debug for {secret}");
    }
}
