//! Crashes at random moments of renewals, and at the moment when the process is to end.

use std::{env, time::Duration};

use nix::sys::signal::Signal;
use testkit::{
    confined::{Confinement, crash},
    fixture::{Site, serial},
    rng::Rng,
};
use tokio::time::{Instant, sleep};

use super::{RESTARTED, certificate, served};

/// So many crashes; `SUCCESSOR_CRASHES` has more of them (200 take some minutes).
const CRASHES: usize = 12;
/// A crash comes within so many times what a renewal takes without one.
const RENEWALS: f64 = 1.0;

pub(crate) fn crashes() -> usize {
    env::var("SUCCESSOR_CRASHES").ok().and_then(|count| count.parse().ok()).unwrap_or(CRASHES)
}

#[tokio::test]
async fn key_and_certificate_fit_whenever_a_renewal_crashes() -> testkit::Result {
    let (mut rng, mut kept, mut renewed, mut calls) = (Rng::seeded(), 0, 0, 0);
    let mut left = crashes();
    while left > 0 {
        let site = Site::new().await?;
        let shim = site.shim().may_crash().confined(Confinement::CLOSED);
        let mut pod = site.serve_with(shim).await?;
        served(&mut pod.shim).await?;
        let start = Instant::now();
        let answer = pod.rotate_and_see().await?;
        let (renewal, mut before) = (start.elapsed().mul_f64(RENEWALS), serial(&answer)?);
        // The third crash within a minute would cost the key.
        for _ in 0..left.min(2) {
            left -= 1;
            let (mark, asked) = (pod.shim.log().mark(), pod.site.ca.calls().len());
            pod.rotate()?;
            sleep(Duration::from_micros(rng.below(renewal.as_micros() as u64))).await;
            crash(pod.shim.pid())?;
            pod.shim.wait_for_log_after(mark, RESTARTED).await?;
            pod.shim.wait_for_log_after(mark, "still serving the certificate").await?;
            let after = certificate(&mut pod.shim).await?.serial()?;
            let more = pod.site.ca.calls().len() - asked;
            assert!(more <= 2, "{more} calls for one renewal");
            assert!(pod.site.issued().contains(&after), "{after} is nobody's");
            if after == before {
                kept += 1
            } else {
                renewed += 1
            }
            (before, calls) = (after, calls + more);
        }
    }
    println!(
        "{} crashes, {calls} calls: {kept} times the old certificate was served, {renewed} times the new one",
        crashes()
    );
    Ok(())
}

/// The command ends during a crash, by itself or with SIGTERM: so does the process, with its code.
#[tokio::test]
async fn the_command_ends_during_a_crash_that_hands_on_a_key() -> testkit::Result {
    for by_signal in [true, false].repeat(crashes()) {
        let site = Site::new().await?;
        let script = "trap 'exit 9' TERM; echo ready; until [ -e go ]; do sleep 0.01; done; exit 9";
        let shim = site.shim().may_crash().confined(Confinement::CLOSED).exec(&["sh", "-c", script]);
        let mut pod = site.serve_with(shim).await?;
        served(&mut pod.shim).await?;
        pod.shim.wait_for_log("ready").await?;
        pod.shim.wait_for_log("command started").await?;
        match by_signal {
            true => pod.shim.signal(Signal::SIGTERM)?,
            false => std::fs::write(pod.site.workload.path().join("go"), "").expect("write it"),
        }
        // It may have ended before it can crash.
        let _ = crash(pod.shim.pid());
        assert_eq!(pod.shim.wait_exit().await?.code(), Some(9));
    }
    Ok(())
}
