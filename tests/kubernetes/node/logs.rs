//! What kubelet keeps of what the containers have written: a token or a key there would be everybody's who reads logs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{Failure, OrFail, node::Node, scratch::Scratch, workspace};

/// Searches all that kubelet has, for tokens and keys. kubelet removes what a pod wrote when the pod is deleted.
pub(crate) fn hold_no_secrets(node: &Node) -> testkit::Result {
    let scratch = Scratch::new("node-logs")?;
    let mut count = 0;
    for (number, file) in files(&node.container_logs())?.iter().enumerate() {
        fs::copy(file, scratch.path().join(format!("{number}.log"))).or_fail(format!("copy {}", file.display()))?;
        count = number + 1;
    }
    let script = workspace().join("tests/testkit/search-output.sh");
    let told = Command::new(script).arg(scratch.path()).arg("0").output().or_fail("search the logs")?;
    if !told.status.success() {
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        return Err(Failure::new(format!("in the logs of {count} containers: {told}")));
    }
    println!("{count} containers' logs: {}", String::from_utf8_lossy(&told.stdout).trim());
    scratch.remove()
}

/// The files below a directory. Those of a pod that goes may go meanwhile.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).or_fail(format!("list {}", directory.display()))?.flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path).unwrap_or_default()),
            path => found.push(path),
        }
    }
    Ok(found)
}
