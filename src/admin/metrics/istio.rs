use std::{fmt, sync::Arc};

use prometheus_client::metrics::MetricType;

use super::{Writer, sample};
use crate::status::{Status, Workload};

impl Writer<'_> {
    /// What dashboards for Istio's agent look for, with its names, labels and units. Its counters lack the suffix
    /// that OpenMetrics demands, so their type is told as unknown.
    pub(super) fn istio(&mut self, status: &Status, workloads: &[Arc<Workload>], now: i64) -> fmt::Result {
        let help = "Time until the certificate ends";
        let mut metric = self.describe("istio_agent_cert_expiry_seconds", help, MetricType::Gauge)?;
        // Istio has one workload a process: of several, the one that ends first.
        let ends = workloads.iter().filter_map(|one| one.secrets().get("default").map(|held| held.not_after()));
        if let Some(end) = ends.min() {
            sample(&mut metric, vec![("resource_name", "default")], end - now)?;
        }
        let facts: Vec<_> = status.endpoints().iter().map(|one| one.facts()).collect();
        let calls: u64 = facts.iter().map(|facts| facts.latencies.count()).sum();
        let failed: u64 = facts.iter().map(|facts| facts.failed).sum();
        let milliseconds = facts.iter().map(|facts| facts.latencies.sum).sum::<f64>() * 1e3;
        for (name, help, value) in [
            ("istio_agent_num_outgoing_requests", "Calls to the CA", calls as f64),
            ("istio_agent_num_failed_outgoing_requests", "Failed calls to the CA", failed as f64),
            ("istio_agent_outgoing_latency", "Total duration of calls to the CA in milliseconds", milliseconds),
        ] {
            let mut metric = self.describe(name, help, MetricType::Unknown)?;
            sample(&mut metric, vec![("request_type", "csr")], value)?;
        }
        Ok(())
    }
}
