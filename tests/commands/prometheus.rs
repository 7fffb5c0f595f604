//! A real Prometheus scrapes a shim through an outage of its CA: the alerts that it loads see it in time, and the
//! dashboard's queries show what happened, the first event of each series included. And over mutual TLS, with a
//! certificate of the mesh, through rotations on both sides and a change of the root.

use std::{fs, sync::Arc, time::Duration};

use nix::sys::signal::Signal;

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, Workload,
    development_ca::{CaOptions, DevelopmentCa, Fault, Leaf, Pki, TokenRequest},
    door::Door,
    fixture::{Logged, Open, Site, tokens},
    http, port,
    process::Process,
    scratch::Scratch,
    shim::{Shim, ShimBuilder},
    workspace,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

const LIFE: Duration = Duration::from_secs(60);
/// Between two looks; Prometheus scrapes each second.
const LOOK: Duration = Duration::from_millis(500);

struct Prometheus {
    process: Process,
    port: u16,
    _scratch: Scratch,
}

impl Prometheus {
    /// One that scrapes `target` each second and loads our alerts.
    fn start(target: u16) -> Result<Self, Failure> {
        Self::scraping(target, json!({}))
    }

    /// One that scrapes `target` in this way.
    fn scraping(target: u16, way: Value) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let directory =
            std::env::var_os("PROMETHEUS_DIR").map_or_else(|| workspace().join("target/prometheus"), From::from);
        let port = port::unshared().or_fail("find a port")?;
        let mut job = json!({
            "job_name": "sds-shim",
            "static_configs": [{ "targets": [format!("127.0.0.1:{target}")] }],
        });
        job.as_object_mut().into_iter().for_each(|job| job.extend(way.as_object().cloned().unwrap_or_default()));
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [workspace().join("packaging/prometheus/alerts.yaml")],
            "scrape_configs": [job],
        });
        // JSON is YAML as well.
        let file = scratch.path().join("prometheus.yaml");
        fs::write(&file, config.to_string()).or_fail("write the configuration")?;
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", scratch.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let program = directory.join("prometheus");
        let process = Process::start("prometheus", &program, &arguments, &[], scratch.path());
        Ok(Self { process: process.or_fail("run tests/testkit/install-prometheus.sh")?, port, _scratch: scratch })
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.or_fail("connect to Prometheus")?;
        let answer = http::get(stream, "localhost", path).await?;
        let value: Value = serde_json::from_slice(&answer.body).or_fail("read Prometheus' answer")?;
        if value["status"] == "success" {
            Ok(value["data"].clone())
        } else {
            Err(Failure::new(format!("{path}: {value}")))
        }
    }

    /// The samples that a query has now: labels and values.
    async fn query(&self, query: &str) -> Result<Vec<(Value, f64)>, Failure> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.get(&format!("/api/v1/query?query={query}")).await?;
        let samples = data["result"].as_array().cloned().unwrap_or_default();
        let value = |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        Ok(samples.iter().map(|sample| (sample["metric"].clone(), value(sample))).collect())
    }

    /// Returns once this query has a sample.
    async fn until(&self, query: &str) -> testkit::Result {
        let deadline = Instant::now() + PATIENCE;
        while !self.query(query).await.is_ok_and(|samples| !samples.is_empty()) {
            if Instant::now() > deadline {
                return Err(self.process.failure(format!("nothing is known of {query}")));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// When (seconds since `since`) this alert was first seen, pending or firing.
    async fn alert(&self, name: &str, since: Instant) -> Result<u64, Failure> {
        loop {
            let alerts = self.get("/api/v1/alerts").await?;
            let mut names = alerts["alerts"].as_array().into_iter().flatten();
            if names.any(|alert| alert["labels"]["alertname"] == name) {
                return Ok(since.elapsed().as_secs());
            }
            if since.elapsed() > 2 * LIFE {
                return Err(self.process.failure(format!("{name} was never seen: {alerts}")));
            }
            sleep(LOOK).await;
        }
    }
}

fn dashboard() -> Result<Vec<(String, String)>, Failure> {
    let text = fs::read_to_string(workspace().join("packaging/grafana/sds-shim.json")).or_fail("read the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).or_fail("read the dashboard")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| (text(&panel["title"]), text(&target["expr"])))
    });
    Ok(queries.collect())
}

#[tokio::test]
async fn an_outage_is_seen_by_the_alerts_in_time_and_shown_by_each_panel() -> testkit::Result {
    let scene = Site::new().await?;
    let mut door = Door::to(scene.ca.address()).await?;
    let port = port::unshared().or_fail("find a port")?;
    let shim = scene.shim().env("CA_ADDR", door.address().to_string()).env("ISTIOD_SAN", "istiod.istio-system.svc");
    let shim =
        shim.env("SDS_SHIM_ADMIN", format!("127.0.0.1:{port}")).env("SECRET_TTL", format!("{}s", LIFE.as_secs()));
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    let issued = Instant::now();
    // Scraped only now, as in a cluster, where a pod is found when it runs: the first event is in the first sample.
    let prometheus = Prometheus::start(port)?;
    prometheus.until("sds_shim_ready == 1").await?;
    door.close().await;
    let seen = prometheus.alert("SdsShimRenewalFailing", issued).await?;
    println!("SdsShimRenewalFailing was seen {seen} s after a certificate of {} s was issued", LIFE.as_secs());
    assert!((LIFE.as_secs() * 4 / 10..LIFE.as_secs()).contains(&seen), "after {seen} s");
    for (panel, query) in dashboard()? {
        let samples = prometheus.query(&query).await.map_err(|failure| failure.context(panel.clone()))?;
        let total: f64 = samples.iter().map(|(_, value)| value).sum();
        println!("{panel}: {} samples, {total} together", samples.len());
        let least = match panel.as_str() {
            // Events a minute over five: there was one at least.
            "Renewals" | "Failures by reason" | "CA calls" => Some(0.2),
            "CA latency" => Some(0.0),
            "Secrets on the socket" if !query.contains("nacks") => Some(0.2),
            // There was none of these.
            "Refused connections" | "Secrets on the socket" => None,
            "Streams" if query.contains("pending") => None,
            _ => Some(f64::NEG_INFINITY),
        };
        let shown = least.is_none_or(|least| !samples.is_empty() && total >= least);
        assert!(shown, "{panel} shows nothing of what happened: {query}: {samples:?}");
    }
    let reasons = prometheus.query("sds_shim_renewal_failures_total{reason=\"connect\"}").await?;
    assert!(reasons.iter().any(|(_, count)| *count > 0.0), "{reasons:?}");
    Ok(())
}

/// One shim beside the workload, one beside Prometheus, which writes the files that Prometheus reads.
struct Mesh {
    workload: Logged,
    prometheus: Logged,
    site: Site,
    monitoring: Workload,
    successor: DevelopmentCa,
}

impl Mesh {
    async fn start(port: u16) -> Result<Self, Failure> {
        let site = Site::new().await?;
        let (new, options) = (Arc::new(Pki::new("new")), CaOptions::default());
        let successor = DevelopmentCa::start(new, tokens(), options).await.or_fail("start the new CA")?;
        let directory = site.workload.path().join("prometheus");
        let monitoring = Workload::create(&directory, "monitoring", "prometheus", &site.pki.root_pem());
        let mut monitoring = monitoring.or_fail("lay out Prometheus' pod")?;
        let token = tokens().mint(&TokenRequest::new("monitoring", "prometheus"));
        monitoring.write_token(&token).or_fail("write its token")?;
        let addresses = [&site.ca, &successor].map(|ca| format!("localhost:{}", ca.address().port())).join(",");
        let common = |shim: ShimBuilder| {
            shim.env("CA_ADDR", &addresses).env("SDS_SHIM_ROOT_GRACE", "1s").env("FILE_DEBOUNCE_DURATION", "10ms")
        };
        let of_workload = common(site.shim())
            .env("SDS_SHIM_ADMIN_TLS", format!("127.0.0.1:{port}"))
            .env("SDS_SHIM_ADMIN_TLS_CLIENTS", monitoring.spiffe_id());
        let of_prometheus = common(Shim::for_workload(&monitoring, site.ca.address())).env("OUTPUT_CERTS", "certs");
        let (workload, prometheus) = (Logged(of_workload.start()?), Logged(of_prometheus.start()?));
        let mesh = Self { workload, prometheus, site, monitoring, successor };
        mesh.has_issued(1).await?;
        Ok(mesh)
    }

    /// Both shims have had so many certificates.
    async fn has_issued(&self, count: usize) -> testkit::Result {
        for shim in [&self.workload, &self.prometheus] {
            let issued = |lines: &[String]| {
                (lines.iter().filter(|line| line.contains("certificate issued")).count() >= count).then_some(())
            };
            shim.wait_until(&format!("{count} certificates"), issued).await?;
        }
        Ok(())
    }

    async fn rotate(&self, count: usize) -> testkit::Result {
        for shim in [&self.workload, &self.prometheus] {
            shim.signal(Signal::SIGUSR1)?;
        }
        self.has_issued(count).await
    }

    /// Both know these roots as those of the CA, and `ROOTCA` has so many.
    async fn roots(&mut self, pem: &str, count: u64) -> testkit::Result {
        for workload in [&self.site.workload, &self.monitoring] {
            workload.write_root(pem).or_fail("write the root")?;
        }
        for shim in [&mut self.workload, &mut self.prometheus] {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let status: Value = serde_json::from_str(&shim.admin("/status").await?.text()).or_fail("read it")?;
                let mut resources = status["workloads"][0]["resources"].as_array().into_iter().flatten();
                if resources.any(|one| one["name"] == "ROOTCA" && one["certificate_count"] == count) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(shim.failure(format!("there are no {count} anchors: {status}")));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }
}

impl Prometheus {
    /// Waits for two more scrapes. Returns how many there were, and how many of them failed.
    async fn scrapes(&self) -> Result<(f64, f64), Failure> {
        let count = async |query: &str| {
            let samples = self.query(query).await?;
            Ok::<_, Failure>(samples.first().map_or(0.0, |sample| sample.1))
        };
        let (before, deadline) = (count("count_over_time(up[1h])").await?, Instant::now() + PATIENCE);
        loop {
            let all = count("count_over_time(up[1h])").await?;
            if all >= before + 2.0 {
                return Ok((all, all - count("sum_over_time(up[1h])").await?));
            }
            if Instant::now() > deadline {
                return Err(self.process.failure("it does not scrape"));
            }
            sleep(LOOK).await;
        }
    }

    /// Why the target was not scraped.
    async fn refusal(&self) -> Result<String, Failure> {
        self.until("up == 0").await?;
        let targets = self.get("/api/v1/targets").await?;
        Ok(targets["activeTargets"][0]["lastError"].as_str().unwrap_or_default().to_owned())
    }
}

/// How Prometheus scrapes over mutual TLS, with a certificate and a key in these files.
fn over_tls(files: Option<[String; 2]>) -> Value {
    // Go looks for the address among the names of a certificate, and a workload's has none.
    let mut tls = json!({ "insecure_skip_verify": true });
    if let Some([certificate, key]) = files {
        (tls["cert_file"], tls["key_file"]) = (certificate.into(), key.into());
    }
    // A scrape may take no longer than this, and the machine may be busy.
    json!({ "scheme": "https", "tls_config": tls, "scrape_interval": "2s" })
}

#[tokio::test]
async fn no_scrape_over_mutual_tls_fails_while_certificates_and_the_root_change() -> testkit::Result {
    let port = port::unshared().or_fail("find a port")?;
    let mut mesh = Mesh::start(port).await?;
    let certs = mesh.monitoring.path().join("certs");
    let files = ["cert-chain.pem", "key.pem"].map(|name| certs.join(name).display().to_string());
    let prometheus = Prometheus::scraping(port, over_tls(Some(files)))?;
    prometheus.until("sds_shim_ready == 1").await?;
    for count in [2, 3] {
        mesh.rotate(count).await?;
        prometheus.scrapes().await?;
    }
    let (old, new) = (mesh.site.pki.root_pem(), mesh.successor.root_pem());
    mesh.roots(&format!("{old}{new}"), 2).await?;
    prometheus.scrapes().await?;
    mesh.site.ca.set_fault(Some(Fault::Status(tonic::Code::Unavailable, "gone".to_owned())));
    mesh.rotate(4).await?;
    prometheus.scrapes().await?;
    mesh.roots(&new, 1).await?;
    prometheus.scrapes().await?;
    mesh.rotate(5).await?;
    let (scrapes, failed) = prometheus.scrapes().await?;
    println!("{scrapes} scrapes over mutual TLS, {failed} failed, through 4 rotations on both sides and another root");
    if failed > 0.0 {
        let failure = mesh.workload.failure(format!("{failed} of {scrapes} scrapes failed"));
        return Err(prometheus.process.explain(mesh.prometheus.explain(failure)));
    }
    let refused = mesh.workload.log().lines().into_iter().find(|line| line.contains("refused a client"));
    assert_eq!(refused, None);
    // A certificate of the same mesh that is not named, and none.
    mesh.roots(&format!("{old}{new}"), 2).await?;
    let other = mesh.site.pki.issue(&Leaf::workload(&mesh.site.workload.spiffe_id(), 60 * LIFE));
    let files = ["other.pem", "other-key.pem"].map(|name| mesh.site.workload.path().join(name).display().to_string());
    for (file, text) in files.iter().zip([&other.chain_pem, &other.key_pem]) {
        fs::write(file, text).or_fail("write another certificate")?;
    }
    for (files, expected) in [(Some(files), "403 Forbidden"), (None, "certificate required")] {
        let error = Prometheus::scraping(port, over_tls(files))?.refusal().await?;
        println!("not scraped: {error}");
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}
