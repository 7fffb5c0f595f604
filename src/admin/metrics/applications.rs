use std::fmt;

use prometheus_client::metrics::MetricType;

use super::{Writer, count};
use crate::status::Status;

impl Writer<'_> {
    /// Nothing without SDS_SHIM_WORKLOAD_API.
    pub(super) fn applications(&mut self, status: &Status) -> fmt::Result {
        let Some(peers) = &status.applications else { return Ok(()) };
        let view = peers.view();
        let (connections, streams) = (view.connections as i64, view.streams.len() as i64);
        self.gauge("sds_shim_workload_api_connections", "Open connections on the Workload API's socket", connections)?;
        self.gauge("sds_shim_workload_api_streams", "Open streams on the Workload API's socket", streams)?;
        let help = "Messages sent over the Workload API: certificates (default) and bundles alone (ROOTCA)";
        let mut metric = self.describe("sds_shim_workload_api_pushes", help, MetricType::Counter)?;
        for (resource, counts) in &view.resources {
            count(&mut metric, vec![("resource", resource)], counts.pushes)?;
        }
        let help = "Connections to the Workload API's socket refused because of their user";
        self.refused("sds_shim_workload_api_refused_connections", help, &view)
    }
}
