//! A shim that hangs has a successor as well: one that spins, and one that waits for what never comes.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    confined::{Break, break_it, crash},
    fixture::{Pod, Site},
};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};

use crate::{RESTARTED, break_and_see, first_child, pod, served};

/// How long it may take until a hang is seen: 25 s of processor time, of which a busy machine gives a part, or 50 s.
const SEEN_WITHIN: Duration = Duration::from_secs(240);

/// Breaks a shim, which is this process, while it accepts a connection.
async fn hang(pod: &Pod, pid: u32, how: Break) -> testkit::Result {
    let socket = pod.shim.socket().to_owned();
    let broken = tokio::task::spawn_blocking(move || break_it(pid, how));
    while !broken.is_finished() {
        // The kernel lets it in, and wakes the shim. No more than a few wait for the successor then.
        drop(UnixStream::connect(&socket).await);
        sleep(POLL).await;
    }
    broken.await.map_err(|error| Failure::new(error.to_string()))?
}

/// Waits until the process is in a system call that waits: where it was broken, and in no handler.
async fn until_blocked(pid: u32) -> testkit::Result {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).or_fail("the shim lives")?;
        if stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S')) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!("it does not wait: {stat}")));
        }
        sleep(POLL).await;
    }
}

async fn hangs_and_goes_on(how: Break, said: &str) -> testkit::Result {
    let mut pod = pod().await?;
    served(&mut pod.shim).await?;
    let mark = pod.shim.log().mark();
    hang(&pod, pod.shim.pid(), how).await?;
    let line = pod.shim.wait_for_log_within(mark, RESTARTED, SEEN_WITHIN).await?;
    assert!(line.contains(said) && line.contains("; crash 1 of this process"), "{line}");
    served(&mut pod.shim).await?;
    let metrics = pod.shim.admin("/metrics").await?.text();
    assert!(metrics.contains("\nsds_shim_successors_total 1"), "{metrics}");
    // It is watched like its predecessor, and crashes like it.
    break_and_see(&pod.shim).await?;
    served(&mut pod.shim).await?;
    assert_eq!(pod.shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_shim_that_spins_is_restarted_in_place() -> testkit::Result {
    hangs_and_goes_on(Break::Spin, "hung: 20 s of CPU time without returning to its events").await
}

#[tokio::test]
async fn a_shim_that_blocks_is_restarted_in_place() -> testkit::Result {
    hangs_and_goes_on(Break::Block, "hung: blocked for 30 s").await
}

/// As the sidecar's first process, with its command.
#[tokio::test]
async fn the_first_process_of_a_namespace_keeps_its_command_over_a_hang() -> testkit::Result {
    let site = Site::new().await?;
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let script = "trap 'exit 8' TERM; echo parent $PPID; while :; do sleep 0.02; done";
    let shim = site.shim().may_crash().through(&unshare).exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    pod.shim.wait_for_log("parent 1").await?;
    pod.shim.wait_for_log("command started").await?;
    let first = first_child(pod.shim.pid())?;
    hang(&pod, first, Break::Block).await?;
    pod.shim.wait_for_log_within(0, RESTARTED, SEEN_WITHIN).await?;
    pod.shim.wait_for_log("still following the command").await?;
    served(&mut pod.shim).await?;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGTERM).or_fail("signal the first process")?;
    assert_eq!(pod.shim.wait_exit().await?.code(), Some(8));
    Ok(())
}

/// What it waits for may hang for its successors as well: they would come to an end, and the command with them.
#[tokio::test]
async fn a_hang_after_three_crashes_is_left_as_it_is() -> testkit::Result {
    let pod = pod().await?;
    for _ in 0..3 {
        break_and_see(&pod.shim).await?;
    }
    hang(&pod, pod.shim.pid(), Break::Block).await?;
    let left = "crashed or hung 3 times within 10 minutes: leaving it as it is";
    pod.shim.wait_for_log_within(0, left, SEEN_WITHIN).await?;
    // Nor does that keep a crash from having a successor, but in the handler that has just said it.
    until_blocked(pod.shim.pid()).await?;
    let mark = pod.shim.log().mark();
    crash(pod.shim.pid())?;
    pod.shim.wait_for_log_after(mark, "crash 4 of this process").await?;
    Ok(())
}
