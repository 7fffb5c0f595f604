//! The projected volume has kubelet's layout.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::TestDir;
use development_ca::ProjectedVolume;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn link(path: PathBuf) -> String {
    fs::read_link(path).expect("a symbolic link").into_os_string().into_string().expect("UTF-8")
}

#[test]
fn files_are_links_through_data_into_a_dated_directory() {
    let dir = TestDir::new("layout");
    let volume = dir.path("tokens");
    ProjectedVolume::create(&volume, &[("istio-token", "one")]).expect("it is written");
    let dated = link(volume.join("..data"));
    assert_eq!(names(&volume), sorted(["..data".to_owned(), dated.clone(), "istio-token".to_owned()]));
    assert_eq!(link(volume.join("istio-token")), "..data/istio-token");
    let stem = dated.strip_prefix("..").and_then(|name| name.split_once('.')).expect("a date and a number").0;
    let fields: Vec<usize> = stem.split('_').map(str::len).collect();
    assert_eq!(fields, [4, 2, 2, 2, 2, 2], "{dated}");
    let file = volume.join("istio-token");
    assert_eq!(fs::read_to_string(&file).expect("it is readable"), "one");
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_replacement_swaps_the_data_link_and_removes_the_old_directory() {
    let dir = TestDir::new("replacement");
    let path = dir.path("tokens");
    let volume = ProjectedVolume::create(&path, &[("istio-token", "one"), ("other", "x")]).expect("it is written");
    let before = link(path.join("..data"));
    // The link that a reader opens stays the same file; only what it leads to changes.
    let inode =
        |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::symlink_metadata(path.join(name)).expect("a link"));
    let (token_link, data_link) = (inode("istio-token"), inode("..data"));
    volume.replace(&[("istio-token", "two")]).expect("it is replaced");
    let after = link(path.join("..data"));
    assert_ne!(before, after);
    assert_eq!(names(&path), sorted(["..data".to_owned(), after, "istio-token".to_owned()]));
    assert_eq!(inode("istio-token"), token_link);
    assert_ne!(inode("..data"), data_link);
    assert_eq!(fs::read_to_string(path.join("istio-token")).expect("it is readable"), "two");
}

#[test]
fn an_existing_volume_is_taken_over() {
    let dir = TestDir::new("existing");
    let path = dir.path("tokens");
    ProjectedVolume::create(&path, &[("istio-token", "one")]).expect("it is written");
    ProjectedVolume::create(&path, &[("istio-token", "two")]).expect("it is replaced");
    assert_eq!(names(&path).len(), 3);
    assert_eq!(fs::read_to_string(path.join("istio-token")).expect("it is readable"), "two");
}

#[test]
fn a_name_cannot_leave_the_volume() {
    let dir = TestDir::new("names");
    for name in ["", ".", "..", "..data", "a/b", "/etc/x"] {
        let error = ProjectedVolume::create(&dir.path("tokens"), &[(name, "")]).expect_err("a bad name is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
    }
}

fn sorted<const N: usize>(mut names: [String; N]) -> [String; N] {
    names.sort();
    names
}
