//! What somebody does who has nothing to do.

use std::{
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use testkit::{Failure, OrFail};

use crate::{
    agent::{Launch, OURS, PEER, Running},
    ground::Ground,
    plan::Plan,
    process,
    report::{Figure, Section},
    sds::Crowd,
};

/// How long after its certificate it may still be busy with its start.
const SETTLE: Duration = Duration::from_secs(3);
/// The kernel's event at the beginning of every system call.
const SYSTEM_CALL: &str = "raw_syscalls:sys_enter";

/// Watches both at the same time, each with the two streams of a sidecar.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let mut section = Section::new(
        "idle",
        "Idle",
        "With the two streams of a sidecar (`default`, `ROOTCA`), certificate held, nothing to do; over 60 s, in a \
         quick run 5 s. Of the agent alone, without the Envoy that it would run. System calls as the kernel's \
         tracepoint counts them.",
    );
    let mut two = Vec::new();
    for of in [OURS, PEER] {
        let mut running = Launch::of(of, ground)?.start()?;
        let crowd = Crowd::ask(&mut running, &["default", "ROOTCA"])?;
        two.push((of, running, crowd));
    }
    thread::sleep(SETTLE);
    let mut before = Vec::new();
    for (_, running, _) in &two {
        before.push(process::context_switches(running.pid())?);
    }
    let counts = thread::scope(|scope| {
        let counting = two.iter().map(|(_, running, _)| scope.spawn(|| system_calls(running, plan.idle)));
        let counting: Vec<_> = counting.collect();
        counting
            .into_iter()
            .map(|count| count.join().unwrap_or_else(|_| Err(Failure::new("a thread ended"))))
            .collect::<Vec<_>>()
    });
    for (((of, running, _), before), calls) in two.iter().zip(before).zip(counts) {
        let switches = process::context_switches(running.pid())? - before;
        section.add(|| Figure::new("idle.context_switches", "context switches", "number"), of, &[switches]);
        match calls {
            Ok(calls) => section.add(|| Figure::new("idle.system_calls", "system calls", "number"), of, &[calls]),
            Err(failure) => section.remarks.push(format!("System calls of {of} were not counted: {}.", failure.what())),
        }
    }
    Ok(section)
}

/// How many it makes in this time. Waits that long in any case.
fn system_calls(running: &Running, time: Duration) -> Result<f64, Failure> {
    let pid = running.pid().to_string();
    let seconds = time.as_secs().to_string();
    let counted = Command::new("perf")
        .args(["stat", "-x", ",", "-e", SYSTEM_CALL, "-p", &pid, "--", "sleep", &seconds])
        .stdin(Stdio::null())
        .output();
    let Ok(Output { stderr, .. }) = counted.or_fail("run perf").inspect_err(|_| thread::sleep(time)) else {
        return Err(Failure::new("perf is missing"));
    };
    let text = String::from_utf8_lossy(&stderr);
    let line = text.lines().find(|line| line.contains(SYSTEM_CALL));
    let count = line.and_then(|line| match line.split(',').next()? {
        // Never scheduled, the event no more than the process.
        "<not counted>" => Some(0.0),
        count => count.parse().ok(),
    });
    count.ok_or_else(|| Failure::new(format!("perf says {:?}", text.trim())))
}
