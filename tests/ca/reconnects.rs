//! Envoys that reconnect while the CA is away: it is asked as often as without them.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use testkit::{
    development_ca::Fault,
    fixture::{
        Open, Site,
        attempts::{bound, waits},
        reconnect, renew, within,
    },
};
use tokio::time::sleep;
use tonic::Code;

/// How long the CA is away at least while Envoys reconnect.
const OUTAGE: Duration = Duration::from_secs(6);

/// The fewest and the most calls that an outage of this length may see. Fewer cannot be, because no wait is longer
/// than its bound; more happen once in ten million runs, because with full jitter the sum of n waits is shorter than
/// T with a probability below T^n / (n! b1 b2 … bn).
fn expected_calls(outage: Duration) -> RangeInclusive<usize> {
    let bound = |earlier| Duration::from_millis(bound(earlier)).as_secs_f64();
    // A second less, since the calls themselves take a moment on a loaded machine.
    let (mut left, mut fewest) = (outage.as_secs_f64() - 1.0, 1);
    while left >= bound(fewest - 1) {
        left -= bound(fewest - 1);
        fewest += 1;
    }
    let (mut probability, mut most) = (1.0, 0);
    while probability > 1e-7 || most < fewest {
        probability *= outage.as_secs_f64() / (bound(most) * (most + 1) as f64);
        most += 1;
    }
    fewest..=most
}

/// The CA is asked as often as the length of the outage says, however often Envoys reconnect meanwhile.
async fn calls_in_an_outage(reconnects: usize, first: bool) -> testkit::Result {
    let scene = Site::new().await?;
    let down = Fault::Status(Code::Unavailable, "down".to_owned());
    if first {
        scene.ca.set_fault(Some(down.clone()));
    }
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    if !first {
        Open::connect(&mut shim, "default").await?.next(&shim).await?;
        scene.ca.set_fault(Some(down));
        renew(&shim)?;
    }
    let before = usize::from(!first);
    within(&shim, "the outage", scene.ca.wait_for_calls(before + 1)).await?;
    let began = Instant::now();
    reconnect(&mut shim, reconnects).await?;
    sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    let calls = scene.ca.calls().split_off(before);
    let (expected, waits) = (expected_calls(began.elapsed()), waits(&shim, 0));
    println!("{} calls in {:.1?} of outage with {reconnects} reconnects, first: {first}", calls.len(), began.elapsed());
    assert!(expected.contains(&calls.len()), "{} calls, not {expected:?}: {waits:?}", calls.len());
    assert!(waits.iter().enumerate().all(|(earlier, wait)| *wait <= bound(earlier)), "{waits:?}");
    assert_eq!(calls.iter().map(|call| &call.csr).collect::<BTreeSet<_>>().len(), 1);
    let connections = scene.ca.connections();
    assert!(connections <= before + calls.len() + 1, "{connections} connections for {} calls", calls.len());
    Ok(())
}

#[tokio::test]
async fn five_hundred_reconnects_in_an_outage_cost_no_call() -> testkit::Result {
    let (with, without, first) =
        tokio::join!(calls_in_an_outage(500, false), calls_in_an_outage(0, false), calls_in_an_outage(500, true));
    with.and(without).and(first)
}
