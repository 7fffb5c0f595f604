//! Every page is made alike, and can be read as a file and as rustdoc.

use std::{collections::BTreeMap, env, fs, path::Path};

use testkit::workspace;

use crate::document::Document;

const PARTS: [&str; 4] = ["guide", "reference", "design", "evidence"];

fn pages() -> Vec<Document> {
    let pages: Vec<_> = Document::all().into_iter().filter(|page| page.path.starts_with("src/manual")).collect();
    assert!(pages.len() > 20);
    pages
}

/// `guide` and `kubernetes` of `src/manual/guide/kubernetes.md`.
fn names(path: &Path) -> (&str, &str) {
    let part = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let stem = path.file_stem().and_then(|name| name.to_str());
    (part.expect("it lies in a directory"), stem.expect("it has a name"))
}

#[test]
fn a_page_begins_with_its_title_and_what_it_is_good_for_and_leads_to_others() {
    for page in pages() {
        let name = page.path.display();
        let mut lines = page.text.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("# ")), "{name} has no title");
        assert_eq!(lines.next(), Some(""), "{name}");
        let lead = lines.next().unwrap_or_default();
        assert!(lead.starts_with(char::is_uppercase) && lead.contains('.'), "{name} begins with {lead:?}");
        let prose = page.prose();
        assert_eq!(prose.iter().filter(|line| line.starts_with("# ")).count(), 1, "{name} has several titles");
        let bare = page.text.split("```").skip(1).step_by(2).filter(|block| block.starts_with('\n')).count();
        assert_eq!(bare, 0, "{name} has code without a language, which rustdoc takes for Rust");
        let last = prose.iter().find(|line| line.starts_with("See also: "));
        let leads = last.map_or(0, |line| line.matches("][").count());
        assert!(leads >= 2, "{name} leads nowhere: {last:?}");
    }
}

#[test]
fn rustdoc_has_every_page_and_the_readme_leads_to_it() {
    let module = fs::read_to_string(workspace().join("src/manual/mod.rs")).expect("the module");
    let readme = Document::read("README.md");
    for page in pages() {
        let (part, stem) = names(&page.path);
        assert!(PARTS.contains(&part), "{}", page.path.display());
        let included = format!("page!({stem}, \"{part}/{stem}.md\");");
        assert!(module.contains(&included), "src/manual/mod.rs lacks {included}");
        assert!(readme.targets().contains(&format!("src/manual/{part}/{stem}.md")), "the README lacks {part}/{stem}");
    }
}

/// A page says at its end where its links lead. As files are elsewhere in rustdoc, that reads other definitions first,
/// and the first one counts.
#[test]
fn links_between_pages_lead_to_the_same_page_in_rustdoc() {
    let mut expected = BTreeMap::new();
    for page in pages() {
        let name = page.path.display();
        let definitions = page.definitions();
        let defined: Vec<_> = definitions.keys().cloned().collect();
        let used: Vec<_> = page.labels().into_iter().collect();
        assert_eq!(defined, used, "{name}: what is defined, and what is used");
        for target in page.targets() {
            let (path, anchor) = page.resolve(&target);
            if target.contains("://") || !path.starts_with("src/manual") || path.extension().is_none_or(|e| e != "md") {
                continue;
            }
            let (part, stem) = names(&path);
            let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
            let label = format!("{stem}{anchor}");
            assert_eq!(definitions.get(&label), Some(&target), "{name}: {target} should be defined as [{label}]");
            expected.insert(label, format!("crate::manual::{part}::{stem}{anchor}"));
        }
    }
    let expected: String = expected.iter().map(|(label, target)| format!("[{label}]: {target}\n")).collect();
    let file = workspace().join("src/manual/links.md");
    if env::var_os("MANUAL").is_some() {
        fs::write(&file, &expected).expect("the manual can be written");
    }
    assert_eq!(fs::read_to_string(file).expect("it is there"), expected, "run `make manual`");
}
