//! Renewal: when, what every open stream sees of it, and what a failing CA leaves standing.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use openssl::asn1::Asn1Time;
use testkit::{
    Failure, OrFail,
    development_ca::Fault,
    fixture::{Open, Site, reconnect, renew, within},
    sds::{self, Secret},
    shim::ShimBuilder,
};
use tonic::Code;

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down".to_owned())
}

/// The seconds after which the shim plans to renew a certificate that lives for an hour.
async fn planned(edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<u64, Failure> {
    let scene = Site::new().await?;
    let shim = edit(scene.shim().env("SECRET_TTL", "1h")).start()?;
    let line = shim.wait_for_log("certificate issued").await?;
    let seconds = line.split("renewal_in_s=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    seconds.ok_or_else(|| shim.failure("no time of renewal in the log"))
}

#[tokio::test]
async fn the_renewal_is_planned_within_our_own_window() -> testkit::Result {
    for _ in 0..5 {
        let seconds = planned(|shim| shim).await?;
        assert!((1600..=2345).contains(&seconds), "{seconds} is not 45 % to 65 % of an hour");
    }
    Ok(())
}

#[tokio::test]
async fn renewals_of_workloads_that_start_together_are_spread() -> testkit::Result {
    let mut planned_at = BTreeSet::new();
    for _ in 0..5 {
        planned_at.insert(planned(|shim| shim).await?);
    }
    assert!(planned_at.len() > 2, "{planned_at:?}");
    Ok(())
}

#[tokio::test]
async fn an_availability_target_renews_early_enough_to_keep_it() -> testkit::Result {
    for _ in 0..3 {
        let seconds = planned(|shim| shim.env("SDS_SHIM_AVAILABILITY_TARGET", "50m")).await?;
        // A tenth of the life is what the renewals are spread over, before the last moment.
        assert!((235..=601).contains(&seconds), "{seconds} of an hour, of which 3000 s are to be left");
    }
    let scene = Site::new().await?;
    let shim = scene.shim().env("SECRET_TTL", "1h").env("SDS_SHIM_AVAILABILITY_TARGET", "2h").start()?;
    shim.wait_for_log("too short-lived for SDS_SHIM_AVAILABILITY_TARGET").await?;
    Ok(())
}

#[tokio::test]
async fn istios_ratio_and_jitter_are_honoured() -> testkit::Result {
    for (ratio, jitter, expected) in [
        ("0.2", Some("0"), 2870..=2881),
        ("0.9", Some("0"), 355..=361),
        ("0.5", Some("0.2"), 1070..=2521),
        ("0.2", None, 2510..=3241),
    ] {
        let seconds = planned(|shim| {
            let shim = shim.env("SECRET_GRACE_PERIOD_RATIO", ratio);
            jitter.into_iter().fold(shim, |shim, jitter| shim.env("SECRET_GRACE_PERIOD_RATIO_JITTER", jitter))
        });
        let seconds = seconds.await?;
        assert!(expected.contains(&seconds), "{ratio} {jitter:?}: {seconds} is not in {expected:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_short_certificate_is_renewed_before_its_end() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SECRET_TTL", "8s").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let mut before = stream.next(&shim).await?;
    for _ in 0..2 {
        let next = stream.next(&shim).await?;
        assert_ne!(next.serial()?, before.serial()?);
        let left = seconds_left(&before)?;
        assert!(left > 0, "renewed {} s after its end", -left);
        before = next;
    }
    let calls = scene.ca.calls();
    for pair in calls.windows(2) {
        let apart = pair[1].at.duration_since(pair[0].at).unwrap_or_default();
        assert!(apart >= Duration::from_secs(3), "{apart:?} between two calls");
    }
    Ok(())
}

/// From now to NotAfter of the leaf, negative after it.
fn seconds_left(secret: &Secret) -> Result<i64, Failure> {
    let leaf = secret.leaf()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).or_fail("read the clock")?.as_secs();
    let left = Asn1Time::from_unix(now as i64).and_then(|now| now.diff(leaf.not_after())).or_fail("compare times")?;
    Ok(i64::from(left.days) * 86_400 + i64::from(left.secs))
}

#[tokio::test]
async fn a_renewal_reaches_every_open_stream_of_each_variant() -> testkit::Result {
    let scene = Site::new().await?;
    // Left to itself: by its own timer, not by a signal.
    let shim = scene.shim().env("SECRET_TTL", "10s").env("SECRET_GRACE_PERIOD_RATIO", "0.8");
    let mut shim = shim.env("SECRET_GRACE_PERIOD_RATIO_JITTER", "0").start()?;
    let (one, two) = (shim.connect().await?, shim.connect().await?);
    let mut streams = [Open::new(&one, "default"), Open::new(&one, "default"), Open::new(&two, "default")];
    let mut root = Open::new(&two, "ROOTCA");
    let mut delta = two.delta();
    delta.send(sds::delta_request(&["default"], &[]));
    let mut serials = Vec::new();
    for generation in 0..3 {
        let answer = delta.recv().await.map_err(|failure| shim.explain(failure))?;
        delta.send(sds::delta_ack(&answer));
        let serial = sds::delta_secrets(&answer)?[0].serial()?;
        for stream in &mut streams {
            assert_eq!(stream.next(&shim).await?.serial()?, serial, "generation {generation}");
        }
        serials.push(serial);
    }
    assert_eq!(scene.issued()[..3], serials);
    let fetched = one.fetch(sds::request(&["default"])).await.or_fail("fetch")?;
    assert!(scene.issued()[2..].contains(&sds::secrets(&fetched)?[0].serial()?), "a fetch gets the newest");
    root.next(&shim).await?;
    root.expect_silence(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_new_root_is_pushed_with_the_certificate_that_it_comes_with() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let client = shim.connect().await?;
    let (mut default, mut root) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    default.next(&shim).await?;
    assert_eq!(root.next(&shim).await?.trust_anchors()?.len(), 1);
    scene.ca.set_extra_roots(vec![testkit::development_ca::Pki::new("next").root_pem()]);
    renew(&shim)?;
    default.next(&shim).await?;
    assert_eq!(root.next(&shim).await?.trust_anchors()?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn serials_and_keys_change_with_each_certificate() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let (mut serials, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..4 {
        let secret = stream.next(&shim).await?;
        assert!(secret.key_fits_leaf()?);
        serials.insert(secret.serial()?);
        keys.insert(secret.key_pem.clone());
        renew(&shim)?;
    }
    assert_eq!((serials.len(), keys.len()), (4, 4));
    Ok(())
}

#[tokio::test]
async fn sigusr1_renews_at_once_and_once() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    shim.wait_for_log("renewal requested by signal").await?;
    assert_eq!(scene.ca.calls().len(), 2);
    stream.expect_silence(&shim).await
}

/// A renewal that fails by `fault`, told by `reason`, leaves the old certificate to all who ask, and the right answer
/// that follows replaces it on the stream that was open all the time.
async fn failed_renewal_keeps_the_old_one(fault: Fault, reason: &str) -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_CA_ANSWER_TIMEOUT", "500ms").start()?;
    let mut open = Open::connect(&mut shim, "default").await?;
    let old = open.next(&shim).await?;
    scene.ca.set_fault(Some(fault));
    renew(&shim)?;
    let line = shim.wait_for_log("still serving the current certificate").await?;
    assert!(line.contains(reason) && line.contains("not_after="), "{line}");
    let client = shim.connect().await?;
    assert_eq!(Open::new(&client, "default").next(&shim).await?.key_pem, old.key_pem);
    assert_eq!(Open::new(&client, "ROOTCA").next(&shim).await?.trusted_ca_pem, scene.pki.root_pem());
    let fetched = client.fetch(sds::request(&["default"])).await.or_fail("fetch")?;
    assert_eq!(sds::secrets(&fetched)?[0].serial()?, old.serial()?);
    open.expect_silence(&shim).await?;
    scene.ca.set_fault(None);
    let new = open.next(&shim).await?;
    assert_eq!(scene.issued().last(), Some(&new.serial()?));
    shim.wait_for_log("renewal succeeded").await?;
    Ok(())
}

#[tokio::test]
async fn an_error_at_renewal_keeps_the_old_certificate() -> testkit::Result {
    failed_renewal_keeps_the_old_one(down(), "UNAVAILABLE: down").await
}

#[tokio::test]
async fn silence_at_renewal_keeps_the_old_certificate() -> testkit::Result {
    failed_renewal_keeps_the_old_one(Fault::Hang, "SDS_SHIM_CA_ANSWER_TIMEOUT").await
}

#[tokio::test]
async fn a_foreign_certificate_at_renewal_keeps_the_old_one() -> testkit::Result {
    failed_renewal_keeps_the_old_one(Fault::sign(|o| o.other_key = true), "does not match our CSR").await
}

#[tokio::test]
async fn a_foreign_root_at_renewal_keeps_the_old_one() -> testkit::Result {
    let other = testkit::development_ca::Pki::new("other").root_pem();
    let fault = Fault::mutate(move |chain| vec![chain[0].clone(), chain[1].clone(), other.clone()]);
    failed_renewal_keeps_the_old_one(fault, "does not lead to a root").await
}

#[tokio::test]
async fn reconnects_during_an_outage_cost_the_ca_nothing() -> testkit::Result {
    let scene = Site::new().await?;
    // One call that lasts: whatever else arrives was caused by the reconnects.
    scene.ca.set_fault(Some(Fault::Hang));
    let mut shim = scene.shim().env("SDS_SHIM_CA_ANSWER_TIMEOUT", "10m").start()?;
    within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
    reconnect(&mut shim, 50).await?;
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (1, 1), "before the first certificate");
    scene.ca.set_fault(None);
    scene.ca.disconnect();
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;

    scene.ca.set_fault(Some(Fault::Hang));
    let calls = scene.ca.calls().len();
    renew(&shim)?;
    within(&shim, "a call", scene.ca.wait_for_calls(calls + 1)).await?;
    reconnect(&mut shim, 50).await?;
    assert_eq!(scene.ca.calls().len(), calls + 1, "with one");
    Ok(())
}

#[tokio::test]
async fn reconnects_between_renewals_cost_the_ca_nothing() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    reconnect(&mut shim, 20).await?;
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn streams_stay_open_after_the_end_of_the_certificate() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SECRET_TTL", "5s").start()?;
    let client = shim.connect().await?;
    let (mut stream, mut root) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    let old = stream.next(&shim).await?;
    root.next(&shim).await?;
    scene.ca.set_fault(Some(down()));
    shim.wait_for_log("still serving the current certificate").await?;
    let left = seconds_left(&old)?;
    tokio::time::sleep(Duration::from_secs(u64::try_from(left + 1).unwrap_or_default())).await;
    assert!(seconds_left(&old)? <= 0);
    stream.expect_silence(&shim).await?;
    root.expect_silence(&shim).await?;
    assert!(shim.exited().is_none());
    // The workload's own certificate has expired by now, so that only the token is left to ask with.
    scene.ca.set_fault(None);
    let new = stream.next(&shim).await?;
    assert!(seconds_left(&new)? > 0);
    assert_eq!(scene.issued().last(), Some(&new.serial()?));
    let calls = scene.ca.calls();
    assert!(calls.last().is_some_and(|call| call.peer.is_none()), "an expired certificate is not presented");
    Ok(())
}
