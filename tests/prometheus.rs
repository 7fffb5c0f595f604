//! A real Prometheus scrapes a shim through an outage of its CA: the alerts that it loads see it in time, and the
//! dashboard's queries show what happened, the first event of each series included.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE,
    door::Door,
    fixture::{Open, Site},
    http, port,
    process::Process,
    scratch::Scratch,
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
    /// One that scrapes `target` and loads our alerts.
    fn start(target: u16) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let directory =
            std::env::var_os("PROMETHEUS_DIR").map_or_else(|| workspace().join("target/prometheus"), From::from);
        let port = port::unshared().or_fail("find a port")?;
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [workspace().join("packaging/prometheus/alerts.yaml")],
            "scrape_configs": [{
                "job_name": "sds-shim",
                "static_configs": [{ "targets": [format!("127.0.0.1:{target}")] }],
            }],
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
