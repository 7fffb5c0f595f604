//! Another process of the same user that takes what it can from the process, over crashes.

use std::path::Path;

use testkit::{
    Failure,
    confined::{Confinement, crash},
    fixture::Site,
    process::Process,
    workspace,
};

use super::{RESTARTED, renewals::crashes, served};

const CRASHES: usize = 6;

/// Crashes the process under the eyes of a thief, who tells what it got.
async fn stolen(confinement: Confinement, how: &str) -> Result<String, Failure> {
    let site = Site::new().await?;
    let shim = site.shim().may_crash().confined(confinement);
    let mut pod = site.serve_with(shim).await?;
    served(&mut pod.shim).await?;
    let directory = pod.site.workload.path();
    let user = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let pid = pod.shim.pid().to_string();
    let script = workspace().join("tests/successor/thief.py").display().to_string();
    let python = ["env", "python3", &*script, &*pid, how];
    let arguments: Vec<_> = user.iter().chain(&python).map(|word| (*word).to_owned()).collect();
    let mut thief = Process::start("thief", Path::new("/usr/bin/setpriv"), &arguments, &[], directory)?;
    thief.wait_for_log("looking").await?;
    for _ in 0..CRASHES {
        let mark = pod.shim.log().mark();
        crash(pod.shim.pid())?;
        pod.shim.wait_for_log_after(mark, RESTARTED).await?;
        served(&mut pod.shim).await?;
    }
    // It goes on until the process is gone.
    pod.shim.kill().await?;
    thief.wait_exit().await?;
    let line = thief.wait_for_log("stolen: ").await?;
    println!("{}: {line}", thief.wait_for_log("looked ").await?);
    Ok(line)
}

/// `tests/confinement/attach.rs` shows that attaching succeeds where nothing forbids it.
#[tokio::test]
async fn a_thief_of_the_same_user_gets_nothing() -> testkit::Result {
    const NOTHING: &str = "stolen: 0 descriptors, 0 keys, 0 attachments";
    // The tenth crash of a process ends it.
    for _ in 0..crashes().div_ceil(2 * CRASHES) {
        assert_eq!(stolen(Confinement::CLOSED, "attach").await?, NOTHING);
    }
    // The control: it gets the descriptors of a start that others can attach to, among which is no key.
    let open = stolen(Confinement::DEFAULT, "look").await?;
    assert!(open != NOTHING && open.contains(", 0 keys, "), "{open}");
    Ok(())
}
