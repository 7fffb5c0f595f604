//! Every link leads somewhere.

use testkit::workspace;

use crate::document::Document;

/// What is wrong with a link, if anything.
fn broken(document: &Document, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = document.resolve(target);
    let there = workspace().join(&path);
    if !there.exists() {
        return Some(format!("{}: {target}: there is no {}", document.path.display(), path.display()));
    }
    let anchor = anchor?;
    let anchors = Document::read(path).anchors();
    (!anchors.contains(&anchor)).then(|| format!("{}: {target}: not among {anchors:?}", document.path.display()))
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let documents = Document::all();
    let mut followed = 0;
    let mut wrong = Vec::new();
    for document in &documents {
        for target in document.targets() {
            wrong.extend(broken(document, &target));
            followed += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(followed > 10, "{followed}");
}

#[test]
fn files_that_documents_name_are_there() {
    let mut looked_at = 0;
    for document in Document::all() {
        for named in document.text.split('`').skip(1).step_by(2) {
            let of_ours =
                ["src/", "tests/", "packaging/", "proto/", "findings/"].iter().any(|top| named.starts_with(top));
            if of_ours && named.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte)) {
                assert!(workspace().join(named).exists(), "{} names {named}", document.path.display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 100, "{looked_at}");
}

#[test]
fn test_programs_that_documents_name_are_there() {
    let manifest = std::fs::read_to_string(workspace().join("Cargo.toml")).expect("it is there");
    let mut looked_at = 0;
    for document in Document::all() {
        for named in document.text.split("`cargo test ").skip(1).chain(document.text.split(" cargo test ").skip(1)) {
            let command = named.split('`').next().unwrap_or_default();
            let Some((before, program)) = command.split_once("--test ") else { continue };
            let program = program.split_whitespace().next().unwrap_or_default();
            let of_ours = manifest.contains(&format!("name = \"{program}\""))
                || workspace().join(format!("tests/{program}/main.rs")).exists();
            // What another package has lies elsewhere, and any of them is written so.
            assert!(
                of_ours || before.contains("-p") || program == "NAME",
                "{}: cargo test {command}",
                document.path.display()
            );
            looked_at += 1;
        }
    }
    assert!(looked_at > 5, "{looked_at}");
}

#[test]
fn a_broken_link_is_found() {
    let document = Document {
        path: "src/manual/guide/page.md".into(),
        text: "# Title\n\n## A `code`, and more\n\n[a](#a-code-and-more) [b](gone.md) [c](../../../README.md#gone)\n\n```\n[d](x)\n```\n\n`[e](y)` [f][g]\n\n[g]: ../../none\n"
            .to_owned(),
    };
    assert!(document.anchors().contains("a-code-and-more"));
    assert_eq!(document.labels().into_iter().collect::<Vec<_>>(), ["g"]);
    let targets = document.targets();
    assert_eq!(targets, ["#a-code-and-more", "gone.md", "../../../README.md#gone", "../../none"]);
    let found: Vec<_> = targets[1..].iter().filter_map(|target| broken(&document, target)).collect();
    assert_eq!(found.len(), 3, "{found:?}");
}
