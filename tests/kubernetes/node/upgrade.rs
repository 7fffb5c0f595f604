//! Another version of the chart and of its images, while `sleep` calls `httpbin`: no call may fail.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, http,
    node::{KUBELET, images},
    workspace,
};
use tokio::net::TcpStream;

use super::{
    life::SYNC,
    mesh::{HTTPBIN, Mesh, Of, SHIM, SLEEP, address, is_alone, status_of},
    traffic::Traffic,
};
use crate::stage::{CA, CHART};

/// The version that comes.
const NEWER: &str = "0.1.1";
/// What an application needs before it ends, as the guide has it: longer than `proxy.maxConnectionSeconds`.
const BEFORE_IT_ENDS: u64 = 12;

/// Chart, images and configuration, and then all pods of both applications; `again` replaces one of them once more.
pub(crate) async fn chart_and_images_are_upgraded_under_traffic(mesh: &Mesh, again: bool) -> testkit::Result {
    mesh.node.load_version(NEWER).await?;
    let chart = newer_chart(mesh)?;
    waits_before_it_ends(mesh, HTTPBIN).await?;
    calls_of_sleep(mesh).await?;
    let before = [shim_image(mesh, SLEEP).await?, shim_image(mesh, HTTPBIN).await?];
    let (key, ca) = (authority(mesh).await?, ca_image(mesh).await?);

    let (traffic, begun) = (Traffic::through_service(mesh).await?, Instant::now());
    let first = calling(mesh).await?;
    let upgraded = async {
        upgrade(mesh, &chart).await?;
        let released = begun.elapsed();
        restart(mesh, HTTPBIN).await?;
        restart(mesh, SLEEP).await?;
        Ok::<_, Failure>(released)
    };
    let (released, told) = tokio::try_join!(upgraded, told_by(mesh, &first))?;
    // The new ones among themselves.
    let second = calling(mesh).await?;
    let ended = async {
        if again {
            restart(mesh, HTTPBIN).await?;
        }
        mesh.cluster.kubectl(&["delete", "deployment", SLEEP.1, "-n", SLEEP.0]).await
    };
    let (_, told_again) = tokio::try_join!(ended, told_by(mesh, &second))?;
    let took = begun.elapsed();
    let handshakes = traffic.stop().await?;

    println!(
        "an upgrade: the release after {released:.1?}, all of it after {took:.1?}; {handshakes} handshakes, 0 failed"
    );
    println!("  sleep made {} and {}", told.trim_end(), told_again.trim_end());
    for told in [told, told_again] {
        assert!(told.ends_with(" calls, 0 failed\n") && told.lines().count() == 1, "{told}");
    }
    assert_eq!(before[0], before[1]);
    assert_ne!(shim_image(mesh, HTTPBIN).await?, before[1], "the image is the same");
    assert_ne!(ca_image(mesh).await?, ca, "the CA's image is the same");
    assert_eq!(authority(mesh).await?, key, "the CA has another key");
    fresh(mesh, &format!("localhost/sds-shim:{}", env!("CARGO_PKG_VERSION"))).await
}

/// Chart and pods as they were at the start: pods then have this in them, as they have not now.
pub(crate) async fn fresh(mesh: &Mesh, expected: &str) -> testkit::Result {
    mesh.upgrade(&json!({})).await?;
    for of in [HTTPBIN, SLEEP] {
        mesh.injects(of, expected).await?;
    }
    for of in [HTTPBIN, SLEEP] {
        mesh.cluster.kubectl(&["delete", "deployment", of.1, "-n", of.0, "--ignore-not-found"]).await?;
        // Nobody calls any more.
        let app = format!("app={}", of.1);
        mesh.cluster.kubectl(&["delete", "pod", "-n", of.0, "-l", &app, "--grace-period=1"]).await?;
    }
    for of in [HTTPBIN, SLEEP] {
        mesh.deploy(of, SHIM).await?;
    }
    tokio::try_join!(alone(mesh, HTTPBIN), alone(mesh, SLEEP)).map(drop)
}

/// The chart as its next version has it, whose images have that version as well.
fn newer_chart(mesh: &Mesh) -> Result<PathBuf, Failure> {
    let chart = mesh.cluster.path().join("newer");
    let copied = Command::new("cp").arg("-r").arg(workspace().join(CHART)).arg(&chart).status();
    assert!(copied.or_fail("copy the chart")?.success(), "cp failed");
    let about = chart.join("Chart.yaml");
    let text = fs::read_to_string(&about).or_fail("read Chart.yaml")?;
    let newer = text.replace(env!("CARGO_PKG_VERSION"), NEWER);
    assert_ne!(newer, text);
    fs::write(&about, newer).or_fail("write Chart.yaml")?;
    Ok(chart)
}

/// As the guide has it; returns once the CA runs with its new image, new pods get the new one, and the Envoys that run have
/// what has changed in their listeners and clusters.
async fn upgrade(mesh: &Mesh, chart: &Path) -> testkit::Result {
    let chart = chart.display().to_string();
    let before = [updates(mesh, SLEEP).await?, updates(mesh, HTTPBIN).await?];
    let words = ["upgrade", "sds-shim", &chart, "-n", "sds-shim", "--reset-then-reuse-values"];
    let image = format!("developmentCA.image=localhost/{CA}:{NEWER}");
    let allowed =
        "proxy.allowedClients={spiffe://cluster.local/ns/foo/sa/sleep,spiffe://cluster.local/ns/foo/sa/other}";
    let values = ["--set", &image, "--set", allowed, "--set", "proxy.maxConnectionSeconds=9"];
    mesh.cluster.helm(&[&words[..], &values].concat()).await?;
    mesh.rolled_out(("sds-shim", CA)).await?;
    for (of, before) in [SLEEP, HTTPBIN].into_iter().zip(before) {
        // kubelet looks at the volumes of a pod that has changed at once.
        let app = format!("app={}", of.1);
        mesh.cluster.kubectl(&["annotate", "pod", "-n", of.0, "-l", &app, "upgraded=yes"]).await?;
        let look = async || {
            let now = updates(mesh, of).await?;
            Ok(now.iter().zip(&before).all(|(now, before)| now > before).then_some(()))
        };
        mesh.eventually("other listeners and clusters", SYNC, look).await?;
    }
    mesh.injects(HTTPBIN, &format!("localhost/sds-shim:{NEWER}")).await
}

/// How often a pod's Envoy has taken listeners, and clusters, that were not as before.
async fn updates(mesh: &Mesh, of: Of) -> Result<[u64; 2], Failure> {
    let address = address(&mesh.pod(of).await?)?;
    let stream = TcpStream::connect((address, 15021)).await.or_fail("connect to Envoy")?;
    let stats = http::get(stream, &address.to_string(), "/stats/prometheus").await?.text();
    let count = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("{} "));
        let count = line.and_then(|count| count.parse().ok());
        count.ok_or_else(|| Failure::new(format!("Envoy does not count {name}")))
    };
    Ok([count("envoy_listener_manager_lds_update_success")?, count("envoy_cluster_manager_cds_update_success")?])
}

/// In place of the real one's idleness, `sleep` calls all the time.
async fn calls_of_sleep(mesh: &Mesh) -> testkit::Result {
    let container = json!({
        "name": SLEEP.1,
        "image": images::HTTPBIN,
        "command": ["/bin/calls", "http://httpbin.bar:8000/ip"],
    });
    template(mesh, SLEEP, &json!({ "terminationGracePeriodSeconds": 30, "containers": [container] })).await
}

/// Calls still come for a while after a pod has been told to end.
async fn waits_before_it_ends(mesh: &Mesh, of: Of) -> testkit::Result {
    let lifecycle = json!({ "preStop": { "sleep": { "seconds": BEFORE_IT_ENDS } } });
    template(mesh, of, &json!({ "containers": [{ "name": of.1, "lifecycle": lifecycle }] })).await
}

/// Changes what a deployment's pods are made from, and waits until there is one of these alone.
pub(crate) async fn template(mesh: &Mesh, of: Of, spec: &Value) -> testkit::Result {
    let patch = json!({ "spec": { "template": { "spec": spec } } }).to_string();
    mesh.cluster.kubectl(&["patch", "-n", of.0, "deployment", of.1, "-p", &patch]).await?;
    alone(mesh, of).await
}

/// Makes its pods anew, and waits until there is one alone.
pub(crate) async fn restart(mesh: &Mesh, of: Of) -> testkit::Result {
    mesh.cluster.kubectl(&["rollout", "restart", "-n", of.0, &format!("deployment/{}", of.1)]).await?;
    alone(mesh, of).await
}

async fn alone(mesh: &Mesh, of: Of) -> testkit::Result {
    mesh.rolled_out(of).await?;
    mesh.eventually("one pod alone", KUBELET, async || is_alone(&mesh.cluster, of).await).await.map(drop)
}

/// The pod of sleep's that calls.
async fn calling(mesh: &Mesh) -> Result<String, Failure> {
    let pod = mesh.pod(SLEEP).await?;
    Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

/// What a pod of sleep's says until it ends.
async fn told_by(mesh: &Mesh, pod: &str) -> Result<String, Failure> {
    mesh.cluster.kubectl(&["logs", "--follow", "-n", SLEEP.0, pod, "-c", SLEEP.1]).await
}

async fn shim_image(mesh: &Mesh, of: Of) -> Result<Value, Failure> {
    Ok(status_of(&mesh.pod(of).await?, SHIM)["imageID"].clone())
}

async fn ca_image(mesh: &Mesh) -> Result<Value, Failure> {
    let deployment = mesh.cluster.get(&["deployment", CA, "-n", "sds-shim"]).await?;
    Ok(deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone())
}

/// Keys and certificates of the CA.
async fn authority(mesh: &Mesh) -> Result<Value, Failure> {
    Ok(mesh.cluster.get(&["secret", CA, "-n", "sds-shim"]).await?["data"].clone())
}
