//! Swap: under memory pressure nothing of the shim is written to it. This test starts the shim as another user and
//! turns on a swap file, so it needs root with the capability SYS_ADMIN, and a control group for memory.

use std::{collections::HashMap, fs, io::Write};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail, POLL,
    confined::{self, Confinement},
    fixture::{Logged, Site},
    residency::{self, Needles},
    scratch::Scratch,
    sds::{self, SdsStream},
    swap::{Cgroup, SwapFile},
};
use tokio::time::{Instant, sleep};

/// How often all memory is taken that can be had, with a rotation after each time.
const ROUNDS: usize = 10;
const SWAP: usize = 32 << 20;

/// A shim in the control group, with an open stream.
struct Subject {
    _site: Site,
    shim: Logged,
    stream: SdsStream,
    needles: Needles,
    keys: usize,
}

impl Subject {
    async fn new(cgroup: &Cgroup, confinement: Confinement, required: &str) -> Result<Self, Failure> {
        let site = Site::new().await?;
        let confinement = Confinement { cgroup: Some(cgroup.entrance()), ..confinement };
        let builder = site.shim().confined(confinement).env("SDS_SHIM_REQUIRE_LOCKED", required);
        let mut shim = Logged(builder.start()?);
        let stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        let mut subject = Self { _site: site, shim, stream, needles: Needles::default(), keys: 0 };
        subject.take().await?;
        Ok(subject)
    }

    async fn take(&mut self) -> testkit::Result {
        let answer = self.stream.recv().await?;
        self.needles.add(self.keys, &sds::secrets(&answer)?.remove(0).key_pem)?;
        self.keys += 1;
        self.stream.send(sds::ack(&answer, &["default"]));
        Ok(())
    }

    async fn rotate(&mut self) -> testkit::Result {
        self.shim.signal(Signal::SIGUSR1)?;
        self.take().await
    }

    /// KiB in swap, by the sum of `smaps`. `VmSwap` leaves shared memory out, as secret memory is.
    fn swapped(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.shim.pid())).or_fail("read the status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:")?.trim().strip_suffix(" kB"));
        let total: u64 = line.and_then(|line| line.trim().parse().ok()).expect("the kernel tells it");
        let sum: u64 = residency::mappings(self.shim.pid())?.iter().map(|mapping| mapping.swap).sum();
        Ok(sum.max(total))
    }
}

/// What the machine must have for this; without it nothing can be tested, which is said past the test harness.
fn pressure(scratch: &Scratch) -> Result<Option<(SwapFile, Cgroup)>, Failure> {
    let tried = Cgroup::new("sds-shim-test").and_then(|cgroup| Ok((SwapFile::on(scratch.path(), SWAP)?, cgroup)));
    match tried {
        Ok(pressure) => Ok(Some(pressure)),
        // A container that may not do it cannot be helped; everything else is a failure.
        Err(failure) if !confined::holds_sys_admin() => {
            let _ = writeln!(std::io::stderr(), "NOT TESTED: this machine lets us make no swap: {failure}");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

#[tokio::test]
async fn nothing_is_swapped_under_pressure_that_swaps_an_unprotected_process() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let Some((swap, cgroup)) = pressure(&scratch)? else { return Ok(()) };
    let mut shim = Subject::new(&cgroup, Confinement::default(), "secret").await?;
    let unprotected = Confinement { memlock: 0, without_secret_memory: true, ..Confinement::default() };
    // The control: the same program, where nothing may be locked.
    let mut control = Subject::new(&cgroup, unprotected, "none").await?;
    let mut most = 0;
    for _ in 0..ROUNDS {
        let deadline = Instant::now() + testkit::PATIENCE;
        loop {
            cgroup.squeeze()?;
            let swapped = control.swapped()?;
            most = most.max(swapped);
            if swapped > 0 {
                break;
            }
            assert!(Instant::now() < deadline, "the control is not swapped either: the pressure is too low");
            sleep(POLL).await;
        }
        assert_eq!(shim.swapped()?, 0, "KiB are in swap");
        shim.rotate().await?;
        control.rotate().await?;
        assert_eq!(shim.swapped()?, 0, "KiB are in swap");
    }
    println!("the control had up to {most} KiB in swap, the shim 0");

    let content = swap.content()?;
    let keys_of = |subject: &Subject| {
        let mut found = HashMap::new();
        subject.needles.count(&content, &mut found);
        found
    };
    println!("keys in the swap file, of the shim: {:?}, of the control: {:?}", keys_of(&shim), keys_of(&control));
    assert_eq!(keys_of(&shim), HashMap::new(), "keys are in the swap file");
    // Compressed in memory, what was swapped may never reach the file.
    let compressed = fs::read_to_string("/sys/module/zswap/parameters/enabled").is_ok_and(|on| on.starts_with('Y'));
    assert!(compressed || !keys_of(&control).is_empty(), "the search does not even find the control's keys");
    Ok(())
}
