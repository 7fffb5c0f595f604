//! A control plane whose identity comes over SDS configures a mesh over ADS with mutual TLS, as
//! `make demo-control-plane` plays it.

use testkit::scene;

#[tokio::test]
async fn a_control_plane_without_a_secret_mount_configures_the_mesh_over_mutual_tls() -> testkit::Result {
    let report = scene::run(scene::Options {
        act: scene::Act::ControlPlane,
        print: |line| println!("{line}"),
        keep_traces: false,
    })
    .await?;
    let shown = |what: &str| report.lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(shown(": 200"), 3 * 4, "{:#?}", report.lines);
    assert_eq!(shown(": refused"), 4 + 1, "{:#?}", report.lines);
    assert_eq!(
        (shown(": 0 failures"), shown("all 4 ADS streams are those of the start")),
        (1, 1),
        "{:#?}",
        report.lines
    );
    Ok(())
}
