//! The process does not run for a while, as in a machine that is suspended: what it was to do is done when it wakes.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    development_ca::Fault,
    fixture::{Open, Site, within},
    sds::{SdsClient, Secret},
    shim::Shim,
};
use tonic::Code;

/// Stops the process until the wall clock shows `until`, and returns a connection that was made meanwhile.
async fn stopped_until(shim: &Shim, until: SystemTime, scene: &Site) -> Result<SdsClient, Failure> {
    shim.signal(Signal::SIGSTOP)?;
    let calls = scene.ca.calls().len();
    let client = SdsClient::connect(shim.socket()).await.or_fail("connect to a stopped process")?;
    // The only way for the time to come is that it passes.
    while let Ok(wait) = until.duration_since(SystemTime::now()) {
        tokio::time::sleep(wait).await;
    }
    assert_eq!(scene.ca.calls().len(), calls, "a stopped process asks nobody");
    Ok(client)
}

/// A shim with certificates of this life, of which it uses a fifth, and a stream that has the first one, with the time
/// by which that was there.
async fn started(scene: &Site, life: &str) -> Result<(Shim, Open, Secret, SystemTime), Failure> {
    let shim = scene.shim().env("SECRET_TTL", life).env("SECRET_GRACE_PERIOD_RATIO", "0.8");
    let mut shim = shim.env("SECRET_GRACE_PERIOD_RATIO_JITTER", "0").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?;
    Ok((shim, stream, first, SystemTime::now()))
}

#[tokio::test]
async fn a_renewal_that_came_due_during_suspension_is_made_at_once() -> testkit::Result {
    const LIFE: Duration = Duration::from_secs(12);
    let scene = Site::new().await?;
    let (shim, mut stream, first, received) = started(&scene, "12s").await?;
    // Due after 2.4 s.
    let client = stopped_until(&shim, received + Duration::from_secs(3), &scene).await?;
    let mut opened = Open::new(&client, "default");
    let woken = SystemTime::now();
    shim.signal(Signal::SIGCONT)?;
    within(&shim, "the renewal", scene.ca.wait_for_calls(2)).await?;
    let asked = scene.ca.calls()[1].at;
    println!("asked {:?} after it was woken", asked.duration_since(woken).unwrap_or_default());
    // Whoever had to wait anew for a share of the life would be later: the next one is due as late.
    assert!(asked < woken + LIFE / 5, "asked {:?} after it was woken", asked.duration_since(woken));
    let second = stream.next(&shim).await?;
    assert_ne!(second.serial()?, first.serial()?);
    assert_eq!(scene.issued().get(1), Some(&second.serial()?));
    // The stream that was opened meanwhile got the old one, which was good, or at once the new one.
    let mut got = opened.next(&shim).await?;
    if got.serial()? == first.serial()? {
        got = opened.next(&shim).await?;
    }
    assert_eq!(got.serial()?, second.serial()?);
    Ok(())
}

/// The certificate expires while the process is stopped, and perhaps the CA is down when it wakes.
async fn expired_meanwhile(down: bool) -> testkit::Result {
    let scene = Site::new().await?;
    let (mut shim, mut stream, first, received) = started(&scene, "5s").await?;
    let client = stopped_until(&shim, received + Duration::from_secs(5), &scene).await?;
    let (mut meanwhile, mut root) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    if down {
        scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    }
    shim.signal(Signal::SIGCONT)?;
    // Trust anchors do not depend on it, and their coming shows that streams are served again.
    root.next(&shim).await?;
    let mut afterwards = Open::connect(&mut shim, "default").await?;
    if down {
        shim.wait_for_log("new streams get none").await?;
        meanwhile.expect_silence(&shim).await?;
        afterwards.expect_silence(&shim).await?;
        scene.ca.set_fault(None);
    }
    for stream in [&mut stream, &mut meanwhile, &mut afterwards] {
        let secret = stream.next(&shim).await?;
        assert_ne!(secret.serial()?, first.serial()?);
        assert!(scene.issued()[1..].contains(&secret.serial()?));
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_after_suspension() -> testkit::Result {
    expired_meanwhile(false).await
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_after_suspension_without_the_ca() -> testkit::Result {
    expired_meanwhile(true).await
}
