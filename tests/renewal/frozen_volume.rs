//! Kubelet's volumes: when the files in them were written is told, and that the token's is not refreshed any more.

use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

use testkit::{
    Failure, OrFail, POLL,
    development_ca::{CaOptions, TokenRequest},
    fixture::{Open, Site, tokens},
    shim::Shim,
};
use tokio::time::{Instant, sleep};

const FROZEN: &str = "kubelet has stopped refreshing it";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";

/// A token of which so much is left, and an hour is over. It is overdue when a fifth of its life without six minutes is
/// left: with 450 s at once, and for each second more 0.8 s later.
fn token(left: i64) -> String {
    tokens().mint(&TokenRequest { lifetime: left, not_before: -3600, ..TokenRequest::new("foo", "sleep") })
}

/// The time at which the metrics say that a file was written.
async fn written(shim: &mut Shim, file: &str) -> Result<Option<u64>, Failure> {
    let metrics = shim.admin("/metrics").await?.text();
    let sample = format!("sds_shim_file_changed_timestamp_seconds{{file=\"{file}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    value.map(|value| value.parse::<u64>().or_fail(format!("read {value}"))).transpose()
}

/// Awaits so many of these lines.
async fn lines(shim: &Shim, text: &str, count: usize) -> testkit::Result {
    let deadline = Instant::now() + testkit::PATIENCE;
    while shim.log().count(text) < count {
        if Instant::now() > deadline {
            return Err(shim.failure(format!("{text:?} was not told {count} times")));
        }
        sleep(POLL).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_overdue_token_is_reported_once() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    scene.write_token(&token(453))?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    assert_eq!(shim.log().count(FROZEN), 0, "kubelet has two seconds yet");
    let line = shim.wait_for_log(FROZEN).await?;
    assert!(line.contains(" WARN ") && line.contains(TOKEN), "{line}");
    assert!(line.contains("the token expires in 7 min and its volume has not changed for 0 min"), "{line}");
    assert!(line.ends_with("see the events in `kubectl describe pod`"), "{line}");

    // A renewal takes the same token, and nothing more is told of it.
    testkit::fixture::renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(shim.log().count(FROZEN), 1);

    // The next one in time, which is frozen as well.
    scene.write_token(&token(452))?;
    lines(&shim, FROZEN, 2).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_replaced_in_time_is_not_reported() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    scene.write_token(&token(454))?;
    let mut shim = scene.shim().start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    scene.write_token(&token(456))?;
    // Of the second one, when the first one would have been told of long since.
    shim.wait_for_log(FROZEN).await?;
    assert_eq!(shim.log().count(FROZEN), 1);
    Ok(())
}

#[tokio::test]
async fn modification_times_of_files_are_shown() -> testkit::Result {
    let mut scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    for file in [TOKEN, ROOT] {
        let path = scene.workload.path().join(file);
        let modified = fs::metadata(&path).and_then(|found| found.modified()).or_fail("look at the file")?;
        let expected = modified.duration_since(UNIX_EPOCH).or_fail("read the time")?.as_secs();
        assert_eq!(written(&mut shim, file).await?, Some(expected), "{file}");
    }
    // Long ago, as in a volume that is not refreshed any more.
    let root = fs::File::open(scene.workload.root_certificate()).or_fail("open the root")?;
    root.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).or_fail("set its time")?;
    assert_eq!(written(&mut shim, ROOT).await?, Some(1_000_000_000));
    // The lists of revoked certificates are not there, and neither is the token now.
    assert_eq!(written(&mut shim, "./var/run/secrets/istio/crl/ca-crl.pem").await?, None);
    scene.workload.remove_token().or_fail("remove the token")?;
    assert_eq!(written(&mut shim, TOKEN).await?, None);
    Ok(())
}
