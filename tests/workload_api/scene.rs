//! A pod whose application has a socket of its own.

use std::path::{Path, PathBuf};

use testkit::{
    Failure,
    fixture::{Pod, Site},
    shim::ShimBuilder,
    workload_api::WorkloadApi,
};

/// Where it is.
pub(crate) fn socket(site: &Site) -> PathBuf {
    site.workload.path().join("application/agent.sock")
}

/// The variable that turns it on.
pub(crate) fn at(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// The site's shim with the API.
pub(crate) fn with_api(site: &Site) -> ShimBuilder {
    site.shim().env("SDS_SHIM_WORKLOAD_API", at(&socket(site)))
}

/// A running shim with the API, and a client of that.
pub(crate) async fn serve(edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<(Pod, WorkloadApi), Failure> {
    let site = Site::new().await?;
    let shim = edit(with_api(&site));
    let pod = site.serve_with(shim).await?;
    let api = WorkloadApi::wait_for(&socket(&pod.site)).await?;
    Ok((pod, api))
}
