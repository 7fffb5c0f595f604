mod applications;
mod istio;

use std::{
    collections::BTreeSet,
    fmt::{self, Debug},
    fs,
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::status::{certificates_shown, kind};
use crate::{
    clock,
    identity::Flaw,
    status::{BUCKETS, EndpointFacts, PeersView, Reason, Status, Workload},
    store::{Kind, Secret},
};

/// What OpenMetrics calls itself.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Characters of a certificate's fingerprint that tell it from others.
const FINGERPRINT: usize = 16;

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Everything that is measured, gathered when somebody asks: what is measured costs nothing in between.
pub(super) fn scrape(status: &Arc<Status>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(status))));
    let mut text = String::new();
    // Writing to memory does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

struct Scrape(Arc<Status>);

impl Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Writer { encoder };
        let (status, now) = (&*self.0, clock::now());
        let workloads = status.workloads();
        page.process(status, now)?;
        page.certificates(&workloads, now)?;
        page.renewals(status, &workloads)?;
        page.ca(status)?;
        page.output(status)?;
        page.on_change(status)?;
        page.files(status)?;
        page.peers(status)?;
        page.applications(status)?;
        page.memory()?;
        page.istio(status, &workloads, now)
    }
}

struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn process(&mut self, status: &Status, now: i64) -> fmt::Result {
        let labels = vec![("version", env!("CARGO_PKG_VERSION")), ("openssl", openssl::version::version())];
        let mut build = self.describe("sds_shim_build", "Version and build of the binary", MetricType::Info)?;
        build.encode_info(&labels)?;
        self.gauge("sds_shim_start_time_seconds", "Start time of the process", status.started)?;
        let crashes = locked::last_crash().map_or(0, |crash| crash.crashes);
        self.counter("sds_shim_successors", "Crashes and hangs after which the process restarted in place", crashes)?;
        let ready = i64::from(status.readiness(now).is_ok());
        self.gauge("sds_shim_ready", "1 if everything that Envoy needs is held and usable, as /readyz reports", ready)
    }

    fn certificates(&mut self, workloads: &[Arc<Workload>], now: i64) -> fmt::Result {
        let mut metric = self.describe(
            "sds_shim_not_after_timestamp_seconds",
            "NotAfter of each served certificate and token, and of the service-account token, and NextUpdate of each CRL",
            MetricType::Gauge,
        )?;
        let shown = certificates_shown(workloads);
        for workload in workloads {
            let renewal = workload.renewal();
            for (name, secret) in &*workload.secrets() {
                let mut facts: Vec<_> = secret.facts().iter().enumerate().collect();
                facts.sort_by_key(|(at, facts)| (kind(secret, *at) == "root", facts.not_after));
                // Certificates of different issuers may have the same number, and a chain may hold one twice: a page
                // that tells a sample twice is refused as a whole.
                let mut seen = BTreeSet::new();
                facts.retain(|(_, facts)| seen.insert(facts.fingerprint));
                for (at, facts) in facts.into_iter().take(shown) {
                    let sha256 = facts.fingerprint();
                    let labels = vec![
                        ("identity", renewal.identity.as_str()),
                        ("resource", name),
                        ("kind", kind(secret, at)),
                        (
                            "serial",
                            match secret.kind() {
                                // Whom it is for.
                                Kind::Token => &facts.subject,
                                _ if facts.is_crl => &facts.issuer,
                                _ => &facts.serial,
                            },
                        ),
                        ("sha256", sha256.get(..FINGERPRINT).unwrap_or_default()),
                    ];
                    sample(&mut metric, labels, facts.not_after)?;
                }
            }
            if let Some(end) = renewal.token_not_after {
                let labels = vec![
                    ("identity", renewal.identity.as_str()),
                    ("resource", "token"),
                    ("kind", "token"),
                    ("serial", ""),
                    ("sha256", ""),
                ];
                sample(&mut metric, labels, end)?;
            }
        }
        let mut metric =
            self.describe("sds_shim_certificate_age_seconds", "Time since NotBefore of the leaf", MetricType::Gauge)?;
        for workload in workloads {
            let identity = workload.renewal().identity;
            for (name, secret) in &*workload.secrets() {
                if let Some(leaf) = leaf(secret) {
                    let labels = vec![("identity", identity.as_str()), ("resource", name)];
                    sample(&mut metric, labels, now - leaf.not_before)?;
                }
            }
        }
        Ok(())
    }

    fn renewals(&mut self, status: &Status, workloads: &[Arc<Workload>]) -> fmt::Result {
        let renewals = status.renewals();
        self.counter("sds_shim_renewals", "Certificates issued and published", renewals.issued)?;
        let help = "Failed attempts to obtain a certificate, by class of failure";
        let mut metric = self.describe("sds_shim_renewal_failures", help, MetricType::Counter)?;
        for reason in Reason::ALL {
            count(&mut metric, vec![("reason", reason.label())], renewals.failed[reason as usize])?;
        }
        let facts: Vec<_> = workloads.iter().map(|workload| workload.renewal()).collect();
        let help = "1 if the wanted identity differs from the one held";
        let mut metric = self.describe("sds_shim_identity_pending", help, MetricType::Gauge)?;
        for one in &facts {
            let wanted = one.wanted.as_ref().unwrap_or(&one.identity);
            sample(
                &mut metric,
                vec![("identity", &one.identity), ("wanted", wanted)],
                i64::from(one.wanted.is_some()),
            )?;
        }
        let help = "0 while required revocation lists cannot be served, with the class of the reason";
        let mut metric = self.describe("sds_shim_revocation_usable", help, MetricType::Gauge)?;
        for one in &facts {
            let reason = one.revocation.trouble.as_ref().map_or("", |(reason, _)| reason);
            let labels = vec![("identity", one.identity.as_str()), ("reason", reason)];
            sample(&mut metric, labels, i64::from(reason.is_empty()))?;
        }
        let help = "1 if the mounted certificate has this flaw, for which peers will reject it";
        let mut metric = self.describe("sds_shim_certificate_flaw", help, MetricType::Gauge)?;
        for one in &facts {
            for reason in Flaw::LABELS {
                let has = one.flaws.iter().any(|(flaw, _)| *flaw == reason);
                sample(&mut metric, vec![("identity", one.identity.as_str()), ("reason", reason)], i64::from(has))?;
            }
        }
        for (name, help, pick) in [
            (
                "sds_shim_renewal_last_attempt_timestamp_seconds",
                "Time of the last attempt to obtain a certificate",
                (|facts| facts.last_attempt) as fn(&crate::status::RenewalFacts) -> Option<i64>,
            ),
            (
                "sds_shim_renewal_last_success_timestamp_seconds",
                "Time at which a certificate was last published",
                |facts| facts.last_success,
            ),
            ("sds_shim_renewal_next_attempt_timestamp_seconds", "Time of the next renewal", |facts| facts.next_attempt),
        ] {
            let mut metric = self.describe(name, help, MetricType::Gauge)?;
            for facts in &facts {
                if let Some(at) = pick(facts) {
                    sample(&mut metric, vec![("identity", &facts.identity)], at)?;
                }
            }
        }
        Ok(())
    }

    fn ca(&mut self, status: &Status) -> fmt::Result {
        let facts: Vec<_> = status.endpoints().iter().map(|one| (one.address.as_str(), one.facts())).collect();
        let mut metric =
            self.describe("sds_shim_ca_up", "1 if the last call to this address was answered", MetricType::Gauge)?;
        for (address, facts) in &facts {
            if let Some(up) = facts.is_up() {
                sample(&mut metric, vec![("ca", address)], i64::from(up))?;
            }
        }
        let mut metric = self.describe("sds_shim_ca_calls", "Calls to the CA, by outcome", MetricType::Counter)?;
        for (address, facts) in &facts {
            let ok = facts.latencies.count() - facts.failed;
            for (outcome, calls) in [("ok", ok), ("failed", facts.failed)] {
                count(&mut metric, vec![("ca", address), ("outcome", outcome)], calls)?;
            }
        }
        let help = "Failed calls that did not reach the CA, and so cost it nothing";
        let mut metric = self.describe("sds_shim_ca_unreached", help, MetricType::Counter)?;
        for (address, facts) in &facts {
            count(&mut metric, vec![("ca", address)], facts.unreached)?;
        }
        let help = "Duration of a call to the CA, from the lookup of its name to the answer or failure";
        let mut metric = self.describe("sds_shim_ca_latency_seconds", help, MetricType::Histogram)?;
        for (address, facts) in &facts {
            histogram(&mut metric, address, facts)?;
        }
        let help = "Version and group of the last TLS connection to this address";
        let mut metric = self.describe("sds_shim_ca_tls", help, MetricType::Info)?;
        for (address, facts) in &facts {
            if let Some((version, group)) = facts.tls {
                metric.encode_info(&vec![("ca", *address), ("version", version), ("group", group)])?;
            }
        }
        Ok(())
    }

    /// Nothing without OUTPUT_CERTS.
    fn output(&mut self, status: &Status) -> fmt::Result {
        let Some(output) = status.output() else { return Ok(()) };
        let help = "1 if the files in OUTPUT_CERTS match what is served";
        self.gauge("sds_shim_output_current", help, i64::from(output.trouble.is_none()))?;
        self.counter("sds_shim_output_failures", "Failed writes of these files", output.failed)
    }

    /// Nothing without SDS_SHIM_ON_CHANGE.
    fn on_change(&mut self, status: &Status) -> fmt::Result {
        let Some(facts) = status.on_change() else { return Ok(()) };
        let help = "Actions of SDS_SHIM_ON_CHANGE, by outcome";
        let mut metric = self.describe("sds_shim_on_change", help, MetricType::Counter)?;
        for (outcome, times) in [("success", facts.done), ("failure", facts.failed)] {
            count(&mut metric, vec![("outcome", outcome)], times)?;
        }
        Ok(())
    }

    /// When each was written, not when we have seen it: who has just started knows it as well.
    fn files(&mut self, status: &Status) -> fmt::Result {
        let help = "Modification time of this file, symbolic links followed";
        let mut metric = self.describe("sds_shim_file_changed_timestamp_seconds", help, MetricType::Gauge)?;
        for file in status.files() {
            if let Some(at) = clock::written(file) {
                sample(&mut metric, vec![("file", &file.to_string_lossy())], at)?;
            }
        }
        Ok(())
    }

    fn peers(&mut self, status: &Status) -> fmt::Result {
        let view = status.peers.view();
        self.gauge("sds_shim_sds_connections", "Open connections on the SDS socket", view.connections as i64)?;
        self.gauge("sds_shim_sds_streams", "Open streams on the SDS socket", view.streams.len() as i64)?;
        for (name, help, pick) in [
            (
                "sds_shim_sds_pushes",
                "Secrets sent, by resource",
                (|counts| counts.pushes) as fn(&crate::status::ResourceCounts) -> u64,
            ),
            ("sds_shim_sds_acks", "Secrets accepted, by resource", |counts| counts.acks),
            ("sds_shim_sds_nacks", "Secrets that were refused, by the resource that the refusal is about", |counts| {
                counts.nacks
            }),
        ] {
            let mut metric = self.describe(name, help, MetricType::Counter)?;
            for (resource, counts) in &view.resources {
                count(&mut metric, vec![("resource", resource)], pick(counts))?;
            }
        }
        let help = "Streams waiting for the resource";
        let mut metric = self.describe("sds_shim_sds_pending", help, MetricType::Gauge)?;
        for (resource, streams) in view.pending() {
            sample(&mut metric, vec![("resource", resource)], streams as i64)?;
        }
        self.refused("sds_shim_sds_refused_connections", "Connections refused because of their user", &view)
    }

    fn refused(&mut self, name: &str, help: &str, view: &PeersView) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Counter)?;
        for (uid, refused) in &view.refused {
            count(&mut metric, vec![("uid", uid)], *refused)?;
        }
        Ok(())
    }

    fn memory(&mut self) -> fmt::Result {
        let report = locked::report();
        let help = "Protection of keys: 2 for secret memory with everything locked, 1 for locked memory, 0 for less";
        self.gauge("sds_shim_memory_protection_level", help, report.level() as i64)?;
        let help = "Secret memory: charged, used for keys, and key material in locked memory instead";
        let mut metric = self.describe("sds_shim_secret_bytes", help, MetricType::Gauge)?;
        for (kind, bytes) in [
            ("charged", report.secret.charged),
            ("used", report.secret.used),
            ("peak", report.secret.peak),
            ("spilled", report.secret.spilled),
        ] {
            sample(&mut metric, vec![("kind", kind)], bytes as i64)?;
        }
        let mut metric = self.describe("sds_shim_memory_bytes", "Memory of the process, by kind", MetricType::Gauge)?;
        for (kind, bytes) in [
            ("mapped", Some(report.mapped)),
            ("locked", report.locked),
            ("resident", resident()),
            ("limit", report.limit),
            ("arena", Some(report.arena_mapped as u64)),
            ("arena_used", Some(report.usage.used as u64)),
            ("arena_peak", Some(report.usage.peak as u64)),
        ] {
            if let Some(bytes) = bytes {
                sample(&mut metric, vec![("kind", kind)], bytes as i64)?;
            }
        }
        Ok(())
    }

    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.encoder.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        self.describe(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.describe(name, help, MetricType::Counter)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }
}

fn sample(metric: &mut MetricEncoder<'_>, labels: Labels<'_>, value: impl EncodeGaugeValue) -> fmt::Result {
    metric.encode_family(&labels)?.encode_gauge(&value)
}

fn count(metric: &mut MetricEncoder<'_>, labels: Labels<'_>, value: u64) -> fmt::Result {
    metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

fn histogram(metric: &mut MetricEncoder<'_>, address: &str, facts: &EndpointFacts) -> fmt::Result {
    let latencies = &facts.latencies;
    let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(latencies.counts).collect();
    let labels = vec![("ca", address)];
    metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(latencies.sum, latencies.count(), &buckets, None)
}

fn leaf(secret: &Secret) -> Option<&crate::identity::CertificateFacts> {
    secret.facts().first().filter(|_| secret.kind() == Kind::Certificate).map(AsRef::as_ref)
}

/// `VmRSS` in bytes.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
