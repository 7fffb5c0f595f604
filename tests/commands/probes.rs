//! What probes see: livez, readyz, gRPC's health service and the admin endpoints themselves, through a whole outage.

use std::{os::unix::net::UnixListener, time::Duration};

use sds_shim_proto::grpc::health::v1::health_check_response::ServingStatus;
use serde_json::Value;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, Fault},
    fixture::{Open, Site, renew},
    http::Answer,
    shim::Shim,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};
use tonic::Code;

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

/// Asks until the answer has this status.
async fn until(shim: &mut Shim, path: &str, status: u16) -> Result<Answer, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = shim.admin(path).await?;
        if answer.status == status {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(shim.failure(format!("{path} is {} {:?}, not {status}", answer.status, answer.text())));
        }
        sleep(POLL).await;
    }
}

async fn status(shim: &mut Shim) -> Result<Value, Failure> {
    serde_json::from_str(&shim.admin("/status").await?.text()).or_fail("read the status")
}

#[tokio::test]
async fn readiness_follows_the_certificate_through_a_whole_outage() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(down()));
    let mut shim = scene.shim().env("SECRET_TTL", "6s").start()?;
    let client = shim.connect().await?;
    let mut health = client.watch_health("").await?;

    let answer = until(&mut shim, "/readyz", 503).await?;
    assert!(answer.text().contains("default is not available yet"), "{}", answer.text());
    assert_eq!(shim.admin("/livez").await?.status, 200);
    assert_eq!(client.check_health("").await.or_fail("check the health")?, ServingStatus::NotServing);
    assert_eq!(health.next().await?, ServingStatus::NotServing);
    let answer = until_text(&mut shim, "/readyz", "down for the test").await?;
    assert!(answer.contains("UNAVAILABLE"), "the reason is told: {answer}");

    scene.ca.set_fault(None);
    assert_eq!(health.next().await?, ServingStatus::Serving);
    until(&mut shim, "/readyz", 200).await?;
    assert_eq!(
        client.check_health("envoy.service.secret.v3.SecretDiscoveryService").await.or_fail("check the service")?,
        ServingStatus::Serving
    );

    // The CA is gone again: ready for as long as the certificate lives, and no longer.
    scene.ca.set_fault(Some(down()));
    assert_eq!(health.next().await?, ServingStatus::NotServing);
    let answer = until(&mut shim, "/readyz", 503).await?.text();
    assert!(answer.contains("default expired at 2") && answer.contains("down for the test"), "{answer}");
    assert_eq!(shim.admin("/livez").await?.status, 200);

    scene.ca.set_fault(None);
    assert_eq!(health.next().await?, ServingStatus::Serving);
    until(&mut shim, "/readyz", 200).await?;
    Ok(())
}

async fn until_text(shim: &mut Shim, path: &str, text: &str) -> Result<String, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = shim.admin(path).await?.text();
        if answer.contains(text) {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(shim.failure(format!("{path} says {answer:?}, without {text:?}")));
        }
        sleep(POLL).await;
    }
}

#[tokio::test]
async fn too_little_life_is_not_ready() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SECRET_TTL", "1h").env("SDS_SHIM_READY_MIN_LIFE", "2h").start()?;
    let text = until_text(&mut shim, "/readyz", "SDS_SHIM_READY_MIN_LIFE").await?;
    assert!(text.contains("default expires at 2"), "{text}");
    Ok(())
}

#[tokio::test]
async fn an_unknown_service_has_no_health() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let client = shim.connect().await?;
    let refused = client.check_health("no.such.Service").await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::NotFound));
    assert_eq!(client.watch_health("no.such.Service").await?.next().await?, ServingStatus::ServiceUnknown);
    Ok(())
}

#[tokio::test]
async fn it_is_not_ready_before_a_request_brings_a_token() -> testkit::Result {
    let scene = Site::without_token(CaOptions::default()).await?;
    let mut shim = scene.shim().env("SDS_SHIM_TOKEN_SOURCE", "request").start()?;
    let text = until(&mut shim, "/readyz", 503).await?.text();
    assert!(text.contains("no SDS request has carried a service-account token yet"), "{text}");
    let client = shim.connect().await?.with_token(&testkit::fixture::token())?;
    let mut stream = Open::new(&client, "default");
    stream.next(&shim).await?;
    until(&mut shim, "/readyz", 200).await?;
    Ok(())
}

#[tokio::test]
async fn the_status_tells_certificates_streams_and_trouble() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let held = stream.next(&shim).await?;
    shim.admin("/readyz").await?;
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        let found = status(&mut shim).await?;
        if found["sds"]["resources"]["default"]["acks"] == 1 {
            break found;
        }
        assert!(Instant::now() < deadline, "no acknowledgement in {found}");
        sleep(POLL).await;
    };
    assert_eq!(found["ready"], true);
    let workload = &found["workloads"][0];
    assert_eq!(workload["identity"], scene.workload.spiffe_id());
    let default = workload["resources"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
    let leaf = &default.ok_or_else(|| Failure::new("no default"))?["certificates"][0];
    assert_eq!(leaf["serial"].as_str().map(testkit::fixture::plain_serial), Some(held.serial()?));
    assert_eq!(leaf["kind"], "leaf");
    let peer = &found["sds"]["streams"][0];
    assert_eq!((&peer["pid"], &peer["uid"]), (&std::process::id().into(), &nix::unistd::geteuid().as_raw().into()));
    assert_eq!(peer["resources"][0]["state"], "accepted");
    assert_eq!(found["ca"][0]["up"], true);
    assert_eq!(found["renewals"]["issued"], 1);

    scene.ca.set_fault(Some(down()));
    renew(&shim)?;
    shim.wait_for_log("renewal failed").await?;
    let found = status(&mut shim).await?;
    assert_eq!(found["workloads"][0]["trouble"]["reason"], "refused");
    assert_eq!((&found["ready"], &found["ca"][0]["up"]), (&true.into(), &false.into()));
    assert!(found["renewals"]["failed"]["refused"].as_u64() >= Some(1));
    Ok(())
}

#[tokio::test]
async fn an_occupied_address_is_reported_and_sds_still_works() -> testkit::Result {
    let scene = Site::new().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").or_fail("take a port")?;
    let address = taken.local_addr().or_fail("learn the port")?;
    let mut shim = scene.shim().env("SDS_SHIM_ADMIN", address.to_string()).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let line = shim.wait_for_log("CANNOT serve health").await?;
    assert!(line.contains(&address.to_string()) && line.contains("SDS_SHIM_ADMIN"), "{line}");
    Ok(())
}

#[tokio::test]
async fn it_can_be_switched_off_and_replaces_only_what_is_stale() -> testkit::Result {
    let scene = Site::new().await?;
    let socket = scene.workload.path().join("shim-admin.sock");
    let mut off = scene.shim().env("SDS_SHIM_ADMIN", "off").start()?;
    Open::connect(&mut off, "default").await?.next(&off).await?;
    assert!(!socket.exists());
    off.terminate().await?;

    drop(UnixListener::bind(&socket).or_fail("leave a stale socket")?);
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", 200).await?;
    shim.terminate().await?;
    assert!(!socket.exists(), "it is removed at the end");
    Ok(())
}

#[tokio::test]
async fn clients_cannot_take_more_than_their_place() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", 200).await?;
    let socket = scene.workload.path().join("shim-admin.sock");

    let mut huge = testkit::unix::connect(&socket).await.or_fail("connect")?;
    let request = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    // The connection may be closed while we still write.
    let _ = huge.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, huge.read_to_end(&mut answer)).await.or_fail("wait for the refusal")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");

    // Silent clients hold their places only for a while.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(testkit::unix::connect(&socket).await.or_fail("connect")?);
    }
    let mut all_gone = Vec::new();
    for stream in &mut silent {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut all_gone)).await.or_fail("wait for the end")?;
    }
    assert_eq!(shim.admin("/livez").await?.status, 200);
    assert_eq!(shim.admin("/nothing").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn only_reading_is_answered() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/livez", 200).await?;
    let mut stream = testkit::unix::connect(&scene.workload.path().join("shim-admin.sock")).await.or_fail("connect")?;
    stream.write_all(b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.or_fail("ask")?;
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(30), stream.read_to_string(&mut answer)).await.or_fail("wait")?;
    read.or_fail("read the answer")?;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn metrics_are_plain_text_on_request() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    until(&mut shim, "/readyz", 200).await?;
    for (accept, kind, counter) in [
        ("text/plain", "text/plain; version=0.0.4", "# TYPE sds_shim_renewals_total counter"),
        (
            "application/openmetrics-text, text/plain",
            "application/openmetrics-text",
            "# TYPE sds_shim_renewals counter",
        ),
    ] {
        let socket = scene.workload.path().join("shim-admin.sock");
        let mut stream = testkit::unix::connect(&socket).await.or_fail("connect")?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.or_fail("ask")?;
        let mut answer = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.or_fail("wait")?;
        read.or_fail("read the answer")?;
        assert!(answer.contains(&format!("content-type: {kind}")) && answer.contains(counter), "{answer}");
        assert_eq!(answer.contains("# EOF"), kind.starts_with("application"), "{answer}");
    }
    Ok(())
}
