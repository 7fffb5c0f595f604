//! What an Envoy refuses: it is told under the resource that it is about, for as long as it is so, over restarts of either
//! side, and who has no other secret is not ready.

use sds_shim_proto::grpc::health::v1::health_check_response::ServingStatus;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    envoy::{Bootstrap, Envoy, SdsTransport},
    fixture::Site,
    http::Answer,
    mount::{GKE, Mount, WELL_KNOWN},
    sds,
    shim::{Shim, ShimBuilder},
};
use tokio::time::{Instant, sleep};

/// What Envoy says of each certificate where its configuration demands a staple.
const NO_STAPLE: &str = "Required OCSP response is missing from TLS context";

async fn until(shim: &mut Shim, path: &str, holds: impl Fn(&Answer) -> bool) -> Result<Answer, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = shim.admin(path).await?;
        if holds(&answer) {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(shim.failure(format!("{path} stays {} {}", answer.status, answer.text())));
        }
        sleep(POLL).await;
    }
}

fn parsed(answer: &Answer) -> Value {
    serde_json::from_str(&answer.text()).unwrap_or_default()
}

/// The state of each resource on the streams that are open, as `status` has it.
fn states(status: &Value) -> Vec<(String, String)> {
    let streams = status["sds"]["streams"].as_array().into_iter().flatten();
    let rows = streams.flat_map(|stream| stream["resources"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = rows.map(|row| (text(&row["name"]), text(&row["state"]))).collect();
    all.sort();
    all
}

/// Waits until each resource is in its state, and returns the status then.
async fn until_states(shim: &mut Shim, expected: &[(&str, &str)]) -> Result<Value, Failure> {
    let expected: Vec<_> = expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
    let status = until(shim, "/status", |status| states(&parsed(status)) == expected).await;
    status.map(|status| parsed(&status)).map_err(|failure| failure.context(format!("{expected:?} was expected")))
}

async fn not_ready(shim: &mut Shim, resource: &str, reason: &str) -> testkit::Result {
    let answer = until(shim, "/readyz", |answer| answer.status == 503).await?;
    let told = answer.text();
    assert!(told.contains(&format!("Envoy refused {resource} at ")) && told.contains(reason), "{told}");
    Ok(())
}

/// An Envoy with a listener for mutual TLS; one that is `strict` refuses each certificate, since none has a staple.
fn envoy(scene: &Site, transport: SdsTransport, strict: bool) -> Result<Envoy, Failure> {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let mut config = Bootstrap::new("refused", transport).inbound(nobody, &[scene.workload.spiffe_id()]).build();
    if strict {
        let listener = &mut config["static_resources"]["listeners"][0];
        listener["filter_chains"][0]["transport_socket"]["typed_config"]["ocsp_staple_policy"] = json!("MUST_STAPLE");
    }
    Envoy::start("Envoy", scene.workload.path(), &config)
}

/// What a command printed, and its exit code.
async fn run(shim: ShimBuilder, arguments: &[&str]) -> Result<(i32, String), Failure> {
    let mut command = arguments.iter().fold(shim, |shim, argument| shim.arg(*argument)).start()?;
    let code = command.wait_exit().await?.code();
    Ok((code.ok_or_else(|| command.failure("it was ended by a signal"))?, command.log().lines().join("\n")))
}

async fn a_refused_certificate_is_told_and_not_ready(transport: SdsTransport) -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    let client = shim.connect().await?;
    let mut refusing = envoy(&scene, transport.clone(), true)?;
    not_ready(&mut shim, "default", NO_STAPLE).await?;
    assert_eq!(client.check_health("").await.or_fail("check the health")?, ServingStatus::NotServing);
    let (code, told) = run(scene.shim(), &["health"]).await?;
    assert!(code != 0 && told.contains("Envoy refused default") && told.contains(NO_STAPLE), "{code} {told}");
    let (code, told) = run(scene.shim(), &["wait", "--timeout", "1s"]).await?;
    assert!(code != 0 && told.contains("Envoy refused default"), "{code} {told}");
    let status = until_states(&mut shim, &[("ROOTCA", "blocked"), ("default", "refused")]).await;
    // Whichever came last: it is the certificate that is wrong.
    let status = match status {
        Ok(status) => status,
        Err(_) => until_states(&mut shim, &[("ROOTCA", "accepted"), ("default", "refused")]).await?,
    };
    assert_eq!(status["sds"]["resources"]["ROOTCA"]["nacks"], 0, "{status:#}");
    assert!(status["sds"]["resources"]["default"]["nacks"].as_u64() > Some(0), "{status:#}");

    refusing.terminate().await?;
    let mut content = envoy(&scene, transport, false)?;
    content.wait_ready().await?;
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    until_states(&mut shim, &[("ROOTCA", "accepted"), ("default", "accepted")]).await?;
    content.terminate().await?;
    shim.terminate().await?;
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_envoy_rejects_makes_the_pod_not_ready() -> testkit::Result {
    a_refused_certificate_is_told_and_not_ready(SdsTransport::EnvoyGrpc).await
}

#[tokio::test]
async fn a_certificate_rejected_over_delta_makes_the_pod_not_ready() -> testkit::Result {
    a_refused_certificate_is_told_and_not_ready(SdsTransport::EnvoyDeltaGrpc).await
}

/// The same content comes again from another process, and Envoy, which compares bytes, says again what it thinks of it.
async fn is_refused_again_after_a_restart(transport: SdsTransport) -> testkit::Result {
    let scene = Site::new().await?;
    Mount::new(&scene, WELL_KNOWN, GKE)?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    let mut envoy = envoy(&scene, transport, true)?;
    for _ in 0..3 {
        not_ready(&mut shim, "default", NO_STAPLE).await?;
        let refused = |answer: &Answer| {
            let states = states(&parsed(answer));
            states.len() == 2 && states.contains(&("default".to_owned(), "refused".to_owned()))
        };
        let status = parsed(&until(&mut shim, "/status", refused).await?);
        assert_eq!(status["sds"]["resources"]["ROOTCA"]["nacks"], 0, "{status:#}");
        shim.terminate().await?;
        shim = scene.shim().start()?;
    }
    envoy.terminate().await?;
    Ok(())
}

#[tokio::test]
async fn a_refused_secret_is_not_taken_for_accepted_after_a_restart() -> testkit::Result {
    is_refused_again_after_a_restart(SdsTransport::EnvoyGrpc).await
}

#[tokio::test]
async fn a_refused_secret_is_not_taken_for_accepted_incrementally_after_a_restart() -> testkit::Result {
    is_refused_again_after_a_restart(SdsTransport::EnvoyDeltaGrpc).await
}

#[tokio::test]
async fn a_rejected_secret_with_a_predecessor_keeps_the_pod_ready() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    stream.send(sds::nack(&first, "", &["default"], "not to my taste"));
    not_ready(&mut shim, "default", "not to my taste").await?;

    // The next one is taken, and the one after that is refused by who keeps it.
    testkit::fixture::renew(&shim)?;
    let second = stream.recv().await?;
    stream.send(sds::ack(&second, &["default"]));
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    testkit::fixture::renew(&shim)?;
    let third = stream.recv().await?;
    stream.send(sds::nack(&third, &second.version_info, &["default"], "worse"));
    until(&mut shim, "/status", |status| parsed(status)["sds"]["resources"]["default"]["nacks"] == 2).await?;
    assert_eq!(shim.admin("/readyz").await?.status, 200);

    // It comes again after it has lost the connection, and says what it keeps.
    drop(stream);
    let mut stream = client.stream();
    let again = sds_shim_proto::envoy::service::discovery::v3::DiscoveryRequest {
        version_info: second.version_info.clone(),
        ..sds::request(&["default"])
    };
    stream.send(again);
    let third = stream.recv().await?;
    stream.send(sds::nack(&third, &second.version_info, &["default"], "worse"));
    until(&mut shim, "/status", |status| parsed(status)["sds"]["resources"]["default"]["nacks"] == 3).await?;
    assert_eq!(shim.admin("/readyz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_rejection_names_its_resource() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    let client = shim.connect().await?;
    let (mut certificate, mut roots) = (client.stream(), client.stream());
    certificate.send(sds::request(&["default"]));
    let held = certificate.recv().await?;
    certificate.send(sds::ack(&held, &["default"]));
    until_states(&mut shim, &[("default", "accepted")]).await?;
    roots.send(sds::request(&["ROOTCA"]));
    let anchors = roots.recv().await?;
    let reason = "Failed to load certificate chain from <inline>";
    roots.send(sds::nack(&anchors, "", &["ROOTCA"], reason));
    not_ready(&mut shim, "default", reason).await?;
    let status = until_states(&mut shim, &[("ROOTCA", "blocked"), ("default", "refused")]).await?;
    let counts = |name: &str| status["sds"]["resources"][name]["nacks"].as_u64();
    assert_eq!((counts("default"), counts("ROOTCA")), (Some(1), Some(0)), "{status:#}");
    let line = shim.wait_for_log("Envoy rejected the secret").await?;
    assert!(line.contains("resources=\"default\"") || line.contains("resources=default"), "{line}");

    testkit::fixture::renew(&shim)?;
    let next = certificate.recv().await?;
    certificate.send(sds::ack(&next, &["default"]));
    until(&mut shim, "/readyz", |answer| answer.status == 200).await?;
    until_states(&mut shim, &[("ROOTCA", "accepted"), ("default", "accepted")]).await?;
    Ok(())
}
