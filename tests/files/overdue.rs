//! A mounted certificate that nobody renews: told while there is time, once, and not of one that is renewed.

use testkit::{
    development_ca::Leaf,
    fixture::Site,
    mount::{ID, ISTIO, Mount, Served},
};

const OVERDUE: &str = "nobody has renewed it";

/// A certificate of which so much is left, and an hour is over: it is overdue when a tenth of its life is left, so with
/// 400 s at once, and for each second more 0.9 s later.
fn leaf(left: i64) -> Leaf {
    Leaf { not_before: -3600, not_after: left, ..Leaf::workload(ID, std::time::Duration::ZERO) }
}

#[tokio::test]
async fn an_overdue_mounted_certificate_is_reported_once() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    mount.write_leaf(&leaf(404))?;
    let mut served = Served::start(scene, |shim| shim.env("FILE_MOUNTED_CERTS", "true")).await?;
    served.certificate().await?;
    assert_eq!(served.shim.log().count(OVERDUE), 0, "there are three seconds yet");
    let line = served.shim.wait_for_log(OVERDUE).await?;
    assert!(line.contains(" WARN ") && line.contains("./etc/certs/cert-chain.pem"), "{line}");
    assert!(line.contains("the certificate expires in 6 min and its file has not changed for 0 min"), "{line}");
    assert!(line.ends_with("see the events in `kubectl describe pod`"), "{line}");

    // Read again, it is the same, and nothing more is told of it.
    testkit::fixture::renew(&served.shim)?;
    served.shim.wait_for_log("re-reading the mounted files").await?;
    // One that is renewed in time, by one that is overdue after the first would have been.
    mount.write_leaf(&leaf(404))?;
    served.certificate().await?;
    let mark = served.shim.log().mark();
    mount.write_leaf(&leaf(406))?;
    served.certificate().await?;
    served.shim.wait_for_log_after(mark, OVERDUE).await?;
    assert_eq!(served.shim.log().count(OVERDUE), 2);
    Ok(())
}
