//! A mesh moves from mounted secrets to SDS and back under load, as `make demo-migration` plays it: the scene itself
//! fails with the first request that does.

use testkit::scene;

#[tokio::test]
async fn a_mesh_moves_from_mounted_secrets_to_the_ca_and_back_without_a_failed_request() -> testkit::Result {
    let report =
        scene::run(scene::Options { act: scene::Act::Migration, print: |line| println!("{line}"), keep_traces: false })
            .await?;
    let rows: Vec<_> = report.lines.iter().filter(|line| line.contains(" | ")).collect();
    for workload in ["sleep.foo", "sleep.bar", "httpbin.foo", "httpbin.bar"] {
        for source in ["auto", "ca", "files"] {
            let step = format!("{workload}: SDS_SHIM_SOURCE={source} ");
            assert!(rows.iter().any(|row| row.starts_with(&step)), "no row is of {step:?}: {rows:#?}");
        }
    }
    assert!(report.lines.iter().any(|line| line.ends_with(": 0 failures")), "{:#?}", report.lines);
    Ok(())
}
