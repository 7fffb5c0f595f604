//! A document of the repository: its prose, its headings and its links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use testkit::workspace;

pub(crate) struct Document {
    /// From the root of the repository.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Document {
    pub(crate) fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(workspace().join(&path));
        Self { text: text.unwrap_or_else(|error| panic!("{}: {error}", path.display())), path }
    }

    /// Every document that users and contributors read.
    pub(crate) fn all() -> Vec<Self> {
        let mut found = vec![PathBuf::from("README.md")];
        let mut pending = [".github", "packaging", "src/manual", "tests"].map(PathBuf::from).to_vec();
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(workspace().join(&directory)).expect("list a directory") {
                let entry = entry.expect("list a directory");
                let path = directory.join(entry.file_name());
                if entry.file_type().expect("what it is").is_dir() {
                    if !path.ends_with("target") {
                        pending.push(path);
                    }
                } else if path.extension().is_some_and(|extension| extension == "md") {
                    found.push(path);
                }
            }
        }
        // What rustdoc reads in place of the definitions at the end of each page.
        found.retain(|path| path != Path::new("src/manual/links.md"));
        found.sort();
        found.into_iter().map(Self::read).collect()
    }

    /// Its lines outside of blocks of code, with code within a line taken out.
    pub(crate) fn prose(&self) -> Vec<String> {
        let mut fenced = false;
        let mut lines = Vec::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                lines.push(line.split('`').step_by(2).collect::<Vec<_>>().join("`"));
            }
        }
        lines
    }

    /// What a link can name after `#`, as forges and rustdoc form it.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let mut fenced = false;
        let mut anchors = BTreeSet::new();
        for line in self.text.lines() {
            fenced ^= line.trim_start().starts_with("```");
            if let Some((marks, title)) = line.split_once(' ')
                && !fenced
                && !marks.is_empty()
                && marks.chars().all(|mark| mark == '#')
            {
                let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                anchors.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
            }
        }
        anchors
    }

    /// Its definitions of links, `[label]: target`.
    pub(crate) fn definitions(&self) -> BTreeMap<String, String> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
        lines.map(|(label, target)| (label.to_owned(), target.to_owned())).collect()
    }

    /// Labels that are used, `[text][label]`.
    pub(crate) fn labels(&self) -> BTreeSet<String> {
        let prose = self.prose().join("\n");
        let used = prose.split("][").skip(1).filter_map(|rest| rest.split(']').next());
        used.map(str::to_owned).collect()
    }

    /// Where it leads, by links in the text and by definitions.
    pub(crate) fn targets(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        inline.map(str::to_owned).chain(self.definitions().into_values()).collect()
    }

    /// The file or directory that a relative target names, and the anchor within.
    pub(crate) fn resolve(&self, target: &str) -> (PathBuf, Option<String>) {
        let (file, anchor) = match target.split_once('#') {
            Some((file, anchor)) => (file, Some(anchor.to_owned())),
            None => (target, None),
        };
        if file.is_empty() {
            return (self.path.clone(), anchor);
        }
        let mut path = self.path.parent().map(Path::to_path_buf).unwrap_or_default();
        for component in Path::new(file).components() {
            match component {
                Component::ParentDir => assert!(path.pop(), "{target} leads out of the repository"),
                other => path.push(other),
            }
        }
        (path, anchor)
    }
}
