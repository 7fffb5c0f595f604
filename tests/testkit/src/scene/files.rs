//! No key and no certificate lies in any file of a workload.

use std::path::Path;

use super::{mesh::Sidecar, narrator::Narrator, world::World};
use crate::{Failure, OrFail, scan::scan, workload::ROOT_CERTIFICATE};

pub(super) fn show<'a>(
    sidecars: impl Iterator<Item = &'a Sidecar>,
    world: &World,
    narrator: &mut Narrator,
) -> crate::Result {
    let mut files = 0;
    for sidecar in sidecars {
        let workload = &sidecar.workload;
        let found = scan(workload.path()).or_fail(format!("search {}", workload.path().display()))?;
        files += found.files;
        let root = workload.root_certificate();
        let content = std::fs::read_to_string(&root).or_fail(format!("read {}", root.display()))?;
        if content != world.ca.root_pem() {
            return Err(Failure::new(format!("{} is no longer what the pod was given", root.display())));
        }
        let normal = |path: &Path| path.components().collect::<std::path::PathBuf>();
        if let Some(finding) = found.findings.iter().find(|finding| normal(&finding.path) != normal(&root)) {
            return Err(Failure::new(format!("a {} is in {}", finding.what, finding.path.display())));
        }
        if workload.path().join("etc/certs").exists() {
            return Err(Failure::new(format!("{} has a directory ./etc/certs", workload.name())));
        }
    }
    narrator.say(format!(
        "no private key and no certificate, PEM or DER, in any of the {files} files of the workloads, and no ./etc/certs \
         (the one exception is the public trust anchor that the pod is given: {ROOT_CERTIFICATE})"
    ));
    Ok(())
}
