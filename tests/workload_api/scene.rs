//! A pod whose application has a socket of its own.

use testkit::{
    Failure,
    fixture::{Pod, Site},
    shim::ShimBuilder,
    workload_api::WorkloadApi,
};

pub(crate) use testkit::workload_api::{at, socket};

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
