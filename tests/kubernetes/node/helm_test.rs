//! `helm test`, with the CA and without it.

use std::time::Instant;

use serde_json::json;
use testkit::{Failure, kubernetes::Told};

use super::{authority::has_replicas, mesh::Mesh};
use crate::stage::CA;

/// Values of the chart for tests that fail soon.
const SOON: u64 = 20;
/// The CA's pods.
const CA_PODS: [&str; 4] = ["-n", "sds-shim", "-l", "app.kubernetes.io/component=development-ca"];

pub(crate) async fn helm_test_tells_whether_the_mesh_works(mesh: &Mesh) -> testkit::Result {
    let begun = Instant::now();
    let told = test(mesh, &[]).await?;
    let (output, errors) = (&told.output, &told.errors);
    println!("`helm test`: {:.1?}: {errors}", begun.elapsed());
    assert!(told.status.success(), "{output}{errors}");
    assert_eq!(output.matches("Phase:          Succeeded").count(), 2, "{output}");
    for namespace in ["foo", "bar"] {
        // Helm writes there what the pods say.
        assert!(errors.contains(&format!("spiffe://cluster.local/ns/{namespace}/sa/default")), "{errors}");
    }
    nothing_is_left(mesh).await?;

    mesh.upgrade(&json!({ "test": { "seconds": SOON } })).await?;
    has_replicas(mesh, 0).await?;
    mesh.cluster.kubectl(&[&["wait", "--for=delete", "pod", "--timeout=280s"][..], &CA_PODS].concat()).await?;
    let begun = Instant::now();
    let told = test(mesh, &[]).await?;
    println!("without a CA: {:.1?}: {}", begun.elapsed(), told.errors);
    assert!(!told.status.success(), "{}", told.output);
    assert!(told.errors.contains("pod sds-shim-test-bar failed"), "{}", told.errors);
    let described = mesh.cluster.kubectl(&["describe", "pod", "-n", "bar", "sds-shim-test-bar"]).await?;
    for reason in ["DeadlineExceeded", "Startup probe failed: sds-shim: not ready", "cannot connect to"] {
        assert!(described.contains(reason), "{reason:?} is not in {described}");
    }

    has_replicas(mesh, 1).await?;
    mesh.rolled_out(("sds-shim", CA)).await?;
    test(mesh, &["--filter", "name=sds-shim-test-bar"]).await?.success()?;
    nothing_is_left(mesh).await
}

async fn test(mesh: &Mesh, which: &[&str]) -> Result<Told, Failure> {
    mesh.cluster.try_helm(&[&["test", "sds-shim", "-n", "sds-shim"], which].concat()).await
}

async fn nothing_is_left(mesh: &Mesh) -> testkit::Result {
    let pods = mesh.cluster.kubectl(&["get", "pods", "-A", "-o", "name"]).await?;
    assert!(!pods.contains("sds-shim-test"), "{pods}");
    Ok(())
}
