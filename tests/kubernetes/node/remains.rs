//! What a killed test leaves of its node is removed by the next one.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use testkit::{
    Failure, OrFail,
    node::{clear_up, possible},
    workspace,
};

/// The pid of no process: above what Linux gives.
const NOBODY: &str = "sds-shim-node-4194305";

/// The directories of control groups.
fn hierarchies() -> Result<Vec<PathBuf>, Failure> {
    let mounts = fs::read_to_string("/proc/mounts").or_fail("read what is mounted")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.filter(|fields| fields[2].starts_with("cgroup")).map(|fields| PathBuf::from(fields[1])).collect())
}

#[test]
#[ignore = "`make test-kubernetes` runs it: it needs root and control groups"]
fn the_next_node_removes_what_a_killed_one_left() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let directory = workspace().join("target/node").join(NOBODY);
    fs::create_dir_all(directory.join("log")).or_fail("make a directory")?;
    let mut left = Command::new("sleep").arg("infinity").stdout(Stdio::null()).spawn().or_fail("start a process")?;
    let groups: Vec<_> = hierarchies()?.iter().map(|path| path.join(NOBODY).join("kubepods")).collect();
    let mut joined = 0;
    for group in &groups {
        fs::create_dir_all(group).or_fail(format!("make {}", group.display()))?;
        // Those of version 1 for processors take none without a set of processors.
        joined += usize::from(fs::write(group.join("cgroup.procs"), left.id().to_string()).is_ok());
    }
    assert!(joined > 0, "the process is in no group");

    clear_up()?;
    let ended = left.try_wait().or_fail("look at the process")?;
    let _ = left.kill();
    assert!(ended.is_some(), "the process runs on");
    assert!(!directory.exists(), "{} is there", directory.display());
    for group in groups.iter().filter_map(|group| group.parent()) {
        assert!(!group.exists(), "{} is there", group.display());
    }
    Ok(())
}
