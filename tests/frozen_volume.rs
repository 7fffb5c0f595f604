//! Kubelet's volumes: when the files in them were written is told.

mod ca_common;

use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

use ca_common::{Open, Scene, Tested};
use testkit::{Failure, OrFail, shim::Shim};

const TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";

/// The time at which the metrics say that a file was written.
async fn written(shim: &mut Shim, file: &str) -> Result<Option<u64>, Failure> {
    let metrics = shim.admin("/metrics").await?.text();
    let sample = format!("sds_shim_file_changed_timestamp_seconds{{file=\"{file}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    value.map(|value| value.parse::<u64>().or_fail(format!("read {value}"))).transpose()
}

#[tokio::test]
async fn it_is_told_when_files_were_written() -> Tested {
    let mut scene = Scene::new().await?;
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
