//! Sizes of programs and images.

use std::{fs, process::Command};

use testkit::{Failure, OrFail, pilot_agent, shim};

use crate::{
    agent::{OURS, PEER},
    ground::Ground,
    plan::Plan,
    report::{Figure, Section},
};

const MEBI: f64 = 1024.0 * 1024.0;
/// How the image with the binary alone is named.
const IMAGE: &str = "localhost/sds-shim:0.1.0";

/// Weighs what there is.
pub(crate) fn measure(_: &Ground, _: &Plan) -> Result<Section, Failure> {
    let mut section = Section::new(
        "sizes",
        "Sizes",
        "Istio's agent has no image of its own: what is compared is the program, built as Istio builds it but stripped \
         here. The image of sds-shim holds its binary and the list of its parts.",
    );
    let peer = pilot_agent::program()?;
    let stripped = crate::report::directory()?.join("pilot-agent.stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(&peer).status().or_fail("run strip")?;
    let peer = if strip.success() { &stripped } else { &peer };
    for (of, path) in [(OURS, &shim::program()?), (PEER, peer)] {
        let size = fs::metadata(path).or_fail(format!("look at {}", path.display()))?.len() as f64 / MEBI;
        section.add(|| Figure::new("sizes.binary", "binary", "MiB"), of, &[size]);
    }
    drop(fs::remove_file(&stripped));
    let listed = Command::new("podman").args(["image", "inspect", "--format", "{{.Size}}", IMAGE]).output();
    let size = listed.ok().and_then(|listed| String::from_utf8_lossy(&listed.stdout).trim().parse::<f64>().ok());
    match size {
        Some(size) => section.add(|| Figure::new("sizes.image", "image", "MiB"), OURS, &[size / MEBI]),
        None => section.remarks.push(format!("{IMAGE} is not there: `make image` builds it.")),
    }
    Ok(section)
}
