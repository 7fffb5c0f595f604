//! The tests of the crate with all unsafe code, under this kernel.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use testkit::{Failure, OrFail, POLL, process::Process};
use tokio::time::{Instant, sleep};

use crate::facts;

/// How long one of them may take: they try thousands of cases.
const PATIENCE: Duration = Duration::from_secs(900);

/// Runs each and tells how it ended, with what it said in the end where that was not well.
pub(super) async fn locked() -> Result<(), Failure> {
    let mut programs = Vec::new();
    for entry in fs::read_dir("/tests").or_fail("look for the tests")? {
        programs.push(entry.or_fail("look for the tests")?.path());
    }
    programs.sort();
    for program in programs {
        // Without the hash that cargo adds.
        let name = program.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _)| name).to_owned();
        let mut process = Process::start(&name, &program, &[], &[], Path::new("/tmp"))?;
        let deadline = Instant::now() + PATIENCE;
        while process.exited().is_none() && Instant::now() < deadline {
            sleep(POLL).await;
        }
        let status = process.wait_exit().await?;
        let lines = process.log().lines();
        let passed = lines.iter().filter(|line| line.starts_with("test ") && line.ends_with(" ... ok")).count();
        let last: Vec<_> = if status.success() { Vec::new() } else { lines.into_iter().rev().take(40).collect() };
        facts::tell(
            &json!({ "scene": "locked", "tests": name, "passed": passed, "code": status.code(), "last": last }),
        );
    }
    Ok(())
}
