//! The acceptance scene, as `make demo` plays it.

use std::collections::BTreeSet;

use testkit::scene;

#[tokio::test]
async fn the_acceptance_scene_is_as_promised() -> testkit::Result {
    let report = scene::run(scene::Options {
        act: scene::Act::Acceptance,
        print: |line| println!("{line}"),
        keep_traces: false,
    })
    .await?;
    let lines: BTreeSet<_> = report.lines.iter().map(String::as_str).collect();
    for from in ["foo", "bar"] {
        for to in ["foo", "bar"] {
            let promised = format!("sleep.{from} to httpbin.{to}: 200");
            assert!(lines.contains(promised.as_str()), "{promised:?} is not among {lines:#?}");
        }
    }
    Ok(())
}
