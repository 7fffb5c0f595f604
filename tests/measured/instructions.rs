//! What a start and a rotation cost in instructions in user mode, counted by valgrind's callgrind: the same in every
//! run, nearly, however busy the machine is, and so a guard where times are none. Valgrind knows no secret memory, so
//! the shim has the ordinary kind here, which takes the same instructions; and it knows neither seccomp(2) nor Landlock,
//! so there is no sandbox, even where all other shims have one. `make bench` tells the figures beside times. And what a
//! start asks of the kernel, as strace tells it.

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    fixture::{Logged, Site},
    sds,
};

/// In millions, as measured; `src/manual/evidence/budgets.md` has them as well.
const START: f64 = 17.0;
const ROTATION: f64 = 10.5;
/// How far they may be exceeded: keys and nonces are random.
const MARGIN: f64 = 1.03;
/// The same where valgrind shows another processor than elsewhere, on which libc and OpenSSL take other paths.
const MARGIN_WITHOUT_AVX2: f64 = 1.3;
/// Below this share of it the figure is out of date.
const STALE: f64 = 0.7;
/// Rotations of one run: their share of the noise is small then.
const ROTATIONS: usize = 20;

/// System calls of a start, as measured, without those of which the moment decides how many there are.
const CALLS: usize = 238;
/// Each time that there is nothing to do, and each time that something has come: a look for events, the timer for hangs,
/// what is read of connections, and answers to what has come of a client.
const OF_THE_MOMENT: [&str; 7] =
    ["epoll_wait", "timer_settime", "recvfrom", "accept4", "write(", "writev", "getsockopt"];

/// Starts at the most until one has made no more.
const STARTS: usize = 20;

/// Instructions from exec to the end, with this many rotations, in millions.
async fn count(rotations: usize) -> Result<f64, Failure> {
    let site = Site::new().await?;
    let out = site.workload.path().join("callgrind.out");
    let file = format!("--callgrind-out-file={}", out.display());
    let shim = site.shim().env("SDS_SHIM_REQUIRE_LOCKED", "none").env("SDS_SHIM_SECCOMP", "off");
    let shim = shim.env("SDS_SHIM_LANDLOCK", "off");
    let shim = shim.through(&["/usr/bin/valgrind", "--quiet", "--tool=callgrind", &file]);
    let mut shim = Logged(shim.start()?);
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    for _ in 0..rotations {
        let answer = stream.recv().await?;
        stream.send(sds::ack(&answer, &["default"]));
        shim.signal(Signal::SIGUSR1)?;
    }
    stream.recv().await?;
    shim.terminate().await?;
    total(&out)
}

fn total(out: &Path) -> Result<f64, Failure> {
    let text = fs::read_to_string(out).or_fail("read callgrind's output")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let total: Option<f64> = total.and_then(|total| total.trim().parse().ok());
    Ok(total.ok_or_else(|| Failure::new("callgrind's output has no total"))? / 1e6)
}

fn has_avx2() -> Result<bool, Failure> {
    let told = fs::read_to_string("/proc/cpuinfo").or_fail("read what the processor can do")?;
    Ok(told.split_whitespace().any(|flag| flag == "avx2"))
}

#[tokio::test]
async fn a_start_and_a_rotation_take_no_more_instructions_than_they_did() -> testkit::Result {
    let start = count(0).await?;
    let rotation = (count(ROTATIONS).await? - start) / ROTATIONS as f64;
    println!("start: {start:.1} million, rotation: {rotation:.1} million");
    let margin = if has_avx2()? { MARGIN } else { MARGIN_WITHOUT_AVX2 };
    for (what, measured, known) in [("a start", start, START), ("a rotation", rotation, ROTATION)] {
        assert!(
            measured <= known * margin,
            "{what} takes {measured:.1} million instructions, and took {known} million"
        );
        // A guard far above what it guards lets the next regression through.
        assert!(measured >= known * STALE, "{what} takes only {measured:.1} million instructions: lower the {known}");
    }
    Ok(())
}

/// What the kernel was asked for, from exec until a client was sent its first `default`: names of calls with what follows.
async fn calls_of_a_start() -> Result<Vec<String>, Failure> {
    let site = Site::new().await?;
    let trace = site.workload.path().join("trace");
    let file = trace.display().to_string();
    let launcher = ["strace", "-D", "-qq", "-e", "signal=none", "-s", "256", "-o", &file];
    let mut shim = Logged(site.shim().through(&launcher).start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await?;
    shim.terminate().await?;
    let text = fs::read_to_string(&trace).or_fail("read the trace")?;
    let mut calls: Vec<_> = text.lines().map(str::to_owned).collect();
    let sent = calls.iter().position(|call| call.starts_with("writev(") && call.contains("type.googleapis.com/envoy."));
    let sent = sent.ok_or_else(|| Failure::new(format!("no certificate was sent in {text}")))?;
    calls.truncate(sent + 1);
    Ok(calls)
}

#[tokio::test]
async fn a_start_asks_no_more_of_the_kernel_than_it_did() -> testkit::Result {
    let is_of_the_moment = |call: &String| OF_THE_MOMENT.iter().any(|name| call.starts_with(name));
    let mut least: Option<Vec<String>> = None;
    // Where Envoy waits for 50 ms, as on a busy machine under strace, the looks at files begin before it has its certificate.
    for _ in 0..STARTS {
        let (of_the_moment, calls): (Vec<_>, Vec<_>) =
            calls_of_a_start().await?.into_iter().partition(is_of_the_moment);
        println!("{} system calls, and {} more as it happened", calls.len(), of_the_moment.len());
        if least.as_ref().is_none_or(|least| calls.len() < least.len()) {
            least = Some(calls);
        }
        if least.as_ref().is_some_and(|least| least.len() <= CALLS) {
            break;
        }
    }
    let least = least.unwrap_or_default();
    let count = least.len();
    assert!(count <= CALLS, "a start makes {count} system calls, and made {CALLS}:\n{}", least.join("\n"));
    // A kernel without secret memory or with an older Landlock is asked for less.
    assert!(count * 100 >= CALLS * 85, "a start makes only {count} system calls: lower the {CALLS}");
    Ok(())
}
