//! The metrics: what a scrape holds after known events, read by the parser of the Prometheus project, and that the
//! documentation, the dashboard and the alerts speak of what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::Value;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::Fault,
    fixture::{Open, Site, renew},
    sds,
    shim::Shim,
    workload_api::WorkloadApi,
    workspace,
};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};
use tonic::Code;

/// Reads OpenMetrics on standard input and writes JSON: the families with their samples.
const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
families = [[f.name, f.type, f.documentation, [[s.name, s.labels, s.value] for s in f.samples]]
            for f in parse(sys.stdin.read())]
json.dump(families, sys.stdout)
";

fn prometheus() -> PathBuf {
    let directory =
        std::env::var_os("PROMETHEUS_DIR").map_or_else(|| workspace().join("target/prometheus"), From::from);
    assert!(directory.join("promtool").is_file(), "run tests/testkit/install-prometheus.sh");
    directory
}

/// Name, labels, value.
type Samples = Vec<(String, BTreeMap<String, String>, f64)>;

struct Family {
    kind: String,
    help: String,
    samples: Samples,
}

struct Scraped(BTreeMap<String, Family>);

impl Scraped {
    async fn new(shim: &mut Shim) -> Result<Self, Failure> {
        let answer = shim.admin("/metrics").await?;
        assert_eq!(answer.status, 200);
        let file = shim.directory().join("scrape");
        fs::write(&file, &answer.body).or_fail("write the scrape")?;
        let input = fs::File::open(&file).or_fail("open the scrape")?;
        let parsed = Command::new("python3")
            .args(["-c", PARSER])
            .env("PYTHONPATH", prometheus().join("python"))
            .stdin(input)
            .output()
            .await
            .or_fail("run the parser")?;
        let told = String::from_utf8_lossy(&parsed.stderr).into_owned();
        assert!(parsed.status.success(), "{told}\n{}", answer.text());
        let families: Vec<(String, String, String, Samples)> =
            read(serde_json::from_slice(&parsed.stdout).or_fail("read the parser's output")?);
        let family = |(name, kind, help, samples)| (name, Family { kind, help, samples });
        Ok(Self(families.into_iter().map(family).collect()))
    }

    /// The value of the one sample with this name that has these labels, among others.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = self.0.values().flat_map(|family| &family.samples);
        let mut found = samples.filter(|(sample, all, _)| {
            sample == name && labels.iter().all(|(key, value)| all.get(*key).is_some_and(|held| held == value))
        });
        let value = found.next().map(|(_, _, value)| *value);
        assert!(found.next().is_none(), "{name} {labels:?} is not unique");
        value
    }
}

fn read(families: Value) -> Vec<(String, String, String, Samples)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let labels = |value: &Value| {
        let labels = value.as_object().expect("labels");
        labels.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    };
    let samples = |value: &Value| {
        list(value)
            .iter()
            .map(|sample| (text(&sample[0]), labels(&sample[1]), sample[2].as_f64().unwrap_or(f64::NAN)))
            .collect()
    };
    list(&families).iter().map(|one| (text(&one[0]), text(&one[1]), text(&one[2]), samples(&one[3]))).collect()
}

/// Scrapes until `name` has at least this value.
async fn until(shim: &mut Shim, name: &str, labels: &[(&str, &str)], least: f64) -> Result<Scraped, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let scraped = Scraped::new(shim).await?;
        if scraped.value(name, labels).is_some_and(|value| value >= least) {
            return Ok(scraped);
        }
        if Instant::now() > deadline {
            return Err(shim.failure(format!("{name} {labels:?} is {:?}", scraped.value(name, labels))));
        }
        sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_scrape_tells_what_happened() -> testkit::Result {
    let scene = Site::new().await?;
    let application = scene.workload.path().join("application.sock");
    let shim = scene
        .shim()
        .env("SECRET_TTL", "1h")
        .env("OUTPUT_CERTS", "./output")
        .env("SDS_SHIM_ON_CHANGE", "http://127.0.0.1:1/x")
        .env("SDS_SHIM_WORKLOAD_API", testkit::workload_api::at(&application));
    let mut shim = shim.start()?;
    let mut default = Open::connect(&mut shim, "default").await?;
    let mut roots = Open::connect(&mut shim, "ROOTCA").await?;
    roots.next(&shim).await?;
    let first = default.next(&shim).await?;
    let _of_application = WorkloadApi::wait_for(&application).await?.svid().await?;
    let client = shim.connect().await?;
    let waiting = client.stream();
    waiting.send(sds::request(&["unknown"]));
    let mut refusing = client.stream();
    refusing.send(sds::request(&["default"]));
    let pushed = refusing.recv().await?;
    refusing.send(sds::nack(&pushed, "", &["default"], "not to my taste"));

    let resource = |name: &'static str| [("resource", name)];
    until(&mut shim, "sds_shim_sds_nacks_total", &resource("default"), 1.0).await?;
    until(&mut shim, "sds_shim_sds_acks_total", &resource("ROOTCA"), 1.0).await?;
    until(&mut shim, "sds_shim_sds_pending", &resource("other"), 1.0).await?;
    let scraped = until(&mut shim, "sds_shim_sds_acks_total", &resource("default"), 1.0).await?;
    let serial = scraped.0["sds_shim_not_after_timestamp_seconds"].samples.iter();
    let serials: Vec<_> = serial.filter(|(_, labels, _)| labels["kind"] == "leaf").collect();
    let [(_, labels, end)] = serials[..] else { panic!("{} leaves", serials.len()) };
    assert_eq!(testkit::fixture::plain_serial(&labels["serial"]), first.serial()?);
    assert_eq!(labels["identity"], scene.workload.spiffe_id());
    let left = scraped.value("istio_agent_cert_expiry_seconds", &[("resource_name", "default")]).unwrap_or_default();
    assert!((3000.0..=3600.0).contains(&left), "{left}");
    let now = scraped.value("sds_shim_renewal_last_success_timestamp_seconds", &[]).unwrap_or_default();
    assert!((end - now - 3600.0).abs() < 5.0, "ends at {end}, issued at {now}");
    for (name, labels, expected) in [
        ("sds_shim_ready", vec![], 1.0),
        ("sds_shim_renewals_total", vec![], 1.0),
        ("sds_shim_sds_streams", vec![], 4.0),
        ("sds_shim_sds_connections", vec![], 3.0),
        ("sds_shim_sds_pushes_total", vec![("resource", "default")], 2.0),
        ("sds_shim_sds_pushes_total", vec![("resource", "ROOTCA")], 1.0),
        ("sds_shim_ca_calls_total", vec![("outcome", "ok")], 1.0),
        ("sds_shim_ca_calls_total", vec![("outcome", "failed")], 0.0),
        ("sds_shim_ca_latency_seconds_count", vec![], 1.0),
        ("sds_shim_ca_up", vec![], 1.0),
        ("sds_shim_ca_tls_info", vec![("version", "TLSv1.3"), ("group", "X25519MLKEM768")], 1.0),
        ("istio_agent_num_outgoing_requests", vec![("request_type", "csr")], 1.0),
        ("istio_agent_num_failed_outgoing_requests", vec![("request_type", "csr")], 0.0),
    ] {
        assert_eq!(scraped.value(name, &labels), Some(expected), "{name} {labels:?}");
    }
    assert!(scraped.value("istio_agent_outgoing_latency", &[]) > Some(0.0));
    assert!(scraped.value("sds_shim_memory_bytes", &[("kind", "resident")]) > Some(1e6));

    // A failure, and the certificate that follows it.
    // It asks for patience, so that the shim does not try again by itself before it is looked at.
    scene.ca.push_fault(Fault::later(Code::ResourceExhausted, 60));
    renew(&shim)?;
    let scraped = until(&mut shim, "sds_shim_renewal_failures_total", &[("reason", "overload")], 1.0).await?;
    assert_eq!(scraped.value("sds_shim_ca_up", &[]), Some(0.0));
    renew(&shim)?;
    let scraped = until(&mut shim, "sds_shim_renewals_total", &[], 2.0).await?;
    assert_eq!(scraped.value("sds_shim_ca_calls_total", &[("outcome", "failed")]), Some(1.0));
    assert_ne!(default.next(&shim).await?.serial()?, first.serial()?);
    documented(&scraped)
}

/// Certificates of different issuers may have the same number, as those of operating systems do.
#[tokio::test]
async fn certificates_with_the_same_serial_are_distinguished() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let numbered = |name: &str, number: u32| numbered(name, number).or_fail("make an anchor");
    let file = scene.workload.path().join("anchors.pem");
    let anchors = [numbered("one", 1)?, numbered("two", 1)?, numbered("three", 0)?];
    fs::write(&file, anchors.concat()).or_fail("write the anchors")?;
    // Open streams speak of their names for as long as the program runs.
    let name: &'static str = format!("file-root:{}", file.display()).leak();
    let mut streams = Vec::new();
    for name in [name, "file-root:system"] {
        let mut stream = Open::connect(&mut shim, name).await?;
        stream.next(&shim).await?;
        streams.push(stream);
    }
    let scraped = Scraped::new(&mut shim).await?;
    let of = |resource: &str| {
        let samples = scraped.0["sds_shim_not_after_timestamp_seconds"].samples.iter();
        samples.filter(|(_, labels, _)| labels["resource"] == resource).map(|(_, labels, _)| labels.clone()).collect()
    };
    let told: Vec<BTreeMap<_, _>> = of(name);
    let mut serials: Vec<_> = told.iter().map(|labels| labels["serial"].as_str()).collect();
    serials.sort_unstable();
    assert_eq!(serials, ["00", "01", "01"]);
    for told in [told, of("file-root:system")] {
        let prints: BTreeSet<_> = told.iter().map(|labels| &labels["sha256"]).collect();
        assert!(prints.len() == told.len() && prints.iter().all(|print| print.len() == 16), "{told:?}");
    }
    Ok(())
}

/// A trust anchor with this serial number, PEM.
fn numbered(name: &str, number: u32) -> Result<Vec<u8>, openssl::error::ErrorStack> {
    use openssl::{asn1::Asn1Time, bn::BigNum, ec, hash::MessageDigest, nid::Nid, pkey::PKey, x509};
    let group = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(ec::EcKey::generate(&group)?)?;
    let mut subject = x509::X509Name::builder()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
    let subject = subject.build();
    let mut builder = x509::X509::builder()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*BigNum::from_u32(number)?.to_asn1_integer()?)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    builder.set_pubkey(&key)?;
    builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(30)?)?;
    builder.append_extension(x509::extension::BasicConstraints::new().critical().ca().build()?)?;
    builder.sign(&key, MessageDigest::sha256())?;
    builder.build().to_pem()
}

/// The table of the documentation is what the scrape says of itself.
fn documented(scraped: &Scraped) -> testkit::Result {
    let page =
        fs::read_to_string(workspace().join("src/manual/reference/metrics.md")).or_fail("read the documentation")?;
    let rows: BTreeSet<_> = page.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    let mut expected = BTreeSet::new();
    for (name, family) in &scraped.0 {
        let labels: BTreeSet<_> = family.samples.iter().flat_map(|(_, labels, _)| labels.keys().cloned()).collect();
        let labels: Vec<_> = labels.into_iter().filter(|label| label != "le").collect();
        // Nothing of the scene has brought a sample of these.
        let labels = if name.ends_with("_refused_connections") { vec!["uid".to_owned()] } else { labels };
        let name = if family.kind == "counter" { format!("{name}_total") } else { name.clone() };
        let name = if family.kind == "info" { format!("{name}_info") } else { name };
        expected.insert(format!("| `{name}` | {} | {} | {} |", family.kind, labels.join(", "), family.help));
    }
    assert_eq!(
        rows,
        expected,
        "src/manual/reference/metrics.md should have:\n{}",
        Vec::from_iter(expected.clone()).join("\n")
    );
    Ok(())
}
