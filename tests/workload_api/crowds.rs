//! Applications that take too much: Envoy is served all the same, and the others go on.

use std::time::Duration;

use testkit::{
    OrFail, PATIENCE, POLL, Result,
    confined::{Confinement, helper},
    fixture::{Pod, Site, serial},
    process::Process,
    sds::{self, SdsClient, SdsStream},
    workload_api::WorkloadApi,
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep, timeout},
};

use crate::scene::{serve, socket, with_api};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Envoy is answered, and has the next certificate.
async fn envoy_is_served(pod: &Pod) -> testkit::Result {
    let (mut stream, answer) = pod.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    pod.rotate()?;
    stream.recv().await.map(drop)
}

async fn is_served_again(pod: &Pod) -> testkit::Result {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(client) = WorkloadApi::connect(&socket(&pod.site)).await
            && let Ok(mut updates) = client.svids().await
            && updates.svid().await.is_ok()
        {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "there is no room again");
        sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_thousand_connections_take_no_place_of_envoys() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    let (_, mut updates) = api.svid().await?;
    let mut open = Vec::new();
    for _ in 0..1000 {
        if let Ok(mut raw) = sds::raw(&socket(&pod.site)).await
            && raw.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.is_ok()
        {
            open.push(raw);
        }
    }
    pod.shim.wait_for_log("Workload API connection limit reached").await?;
    envoy_is_served(&pod).await?;
    updates.svid().await?;
    assert!(!pod.shim.log().contains("SDS connection limit"));
    drop(open);
    is_served_again(&pod).await
}

#[tokio::test]
async fn streams_have_a_limit_of_their_own() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    api.svid().await?;
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < 1000, "there is no limit");
        match api.svids().await {
            Ok(mut updates) => {
                updates.svid().await?;
                open.push(updates);
            }
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(open.len() >= 32, "{}", open.len());
    envoy_is_served(&pod).await?;
    for updates in &mut open {
        updates.svid().await?;
    }
    drop(open);
    is_served_again(&pod).await
}

/// HTTP/2 by hand: a call, whose answer is never read.
#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_and_delays_nobody() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    let (_, mut updates) = api.svid().await?;
    let mut deaf = sds::raw(&socket(&pod.site)).await?;
    deaf.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.or_fail("write the preface")?;
    // PINGs, each of which must be answered.
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(1000);
    let flood = async { while deaf.write_all(&ping).await.is_ok() {} };
    let _ = timeout(Duration::from_millis(500), flood).await;
    for _ in 0..3 {
        pod.rotate()?;
        updates.svid().await?;
    }
    pod.shim.wait_for_log("closed a connection on the Workload API socket: its client does not read").await?;
    Ok(())
}

/// Sixteen applications beside an Envoy, in the memory that containers have.
#[tokio::test]
async fn sixteen_applications_fit_beside_envoy() -> Result<()> {
    let site = Site::new().await?;
    let shim = with_api(&site).confined(Confinement::default());
    let uid = nix::unistd::geteuid().to_string();
    let pod = site.serve_with(shim.env("SDS_SHIM_WORKLOAD_API_UIDS", uid)).await?;
    pod.shim.wait_for_log("keys are in secret memory (32 KiB), the whole process is locked").await?;
    let (mut envoy, answer) = pod.ask(&["default", "ROOTCA"]).await?;
    envoy.send(sds::ack(&answer, &["default", "ROOTCA"]));
    let mut applications = Vec::new();
    for _ in 0..16 {
        let api = WorkloadApi::wait_for(&socket(&pod.site)).await?;
        let (_, updates) = api.svid().await?;
        let mut bundles = api.bundles().await.or_fail("ask for bundles")?;
        bundles.next().await?;
        applications.push((api, updates, bundles));
    }
    for _ in 0..3 {
        pod.rotate()?;
        let answer = envoy.recv().await?;
        envoy.send(sds::ack(&answer, &["default", "ROOTCA"]));
        for (_, updates, _) in &mut applications {
            updates.svid().await?;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.shim.pid())).or_fail("it runs")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).expect("the kernel tells it");
    println!("VmPeak with 16 applications: {peak} KiB");
    assert!(peak <= 8192, "{peak} KiB");
    assert!(!pod.shim.log().contains("more than fits"));
    Ok(())
}

/// How long an SDS stream may take to be answered while applications attack, however often that has to be tried.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// A stream of Envoy's, answered.
async fn answered(pod: &Pod, client: &SdsClient, longest: &mut Duration) -> Result<SdsStream> {
    let started = Instant::now();
    loop {
        let mut stream = client.stream();
        stream.send(sds::request(&["default"]));
        let answer = timeout(SERVED_WITHIN.saturating_sub(started.elapsed()), stream.recv()).await;
        if let Ok(Ok(answer)) = answer {
            stream.send(sds::ack(&answer, &["default"]));
            *longest = (*longest).max(started.elapsed());
            return Ok(stream);
        }
        if started.elapsed() >= SERVED_WITHIN {
            return Err(pod.shim.failure(format!("no answer within {SERVED_WITHIN:?}: {:?}", answer.map(drop))));
        }
        sleep(POLL).await;
    }
}

/// Another connection, and an answer on it.
async fn newcomer(pod: &Pod, longest: &mut Duration) -> testkit::Result {
    let started = Instant::now();
    loop {
        let answer =
            async { SdsClient::connect(pod.shim.socket()).await.ok()?.fetch(sds::request(&["default"])).await.ok() };
        if timeout(SERVED_WITHIN, answer).await.ok().flatten().is_some() {
            *longest = (*longest).max(started.elapsed());
            return Ok(());
        }
        if started.elapsed() >= SERVED_WITHIN {
            return Err(pod.shim.failure(format!("no newcomer was served within {SERVED_WITHIN:?}")));
        }
        sleep(POLL).await;
    }
}

/// What Envoy has while so many processes attack the Workload API.
async fn envoy_goes_on_beside(attack: &str, processes: usize) -> testkit::Result {
    const SECONDS: u32 = 15;
    const STREAMS: usize = 24;
    let site = Site::new().await?;
    let shim = with_api(&site).confined(Confinement::default());
    let uid = nix::unistd::geteuid().to_string();
    let pod = site.serve_with(shim.env("SDS_SHIM_WORKLOAD_API_UIDS", uid)).await?;
    WorkloadApi::wait_for(&socket(&pod.site)).await?;
    let (mut old, mut last) = pod.ask(&["default"]).await?;
    let arguments = [attack.to_owned(), socket(&pod.site).display().to_string(), SECONDS.to_string()];
    let mut attackers = Vec::new();
    for _ in 0..processes {
        let attacker = Process::start(attack, &helper("attacker")?, &arguments, &[], pod.shim.directory())?;
        attacker.wait_for_log("begun").await?;
        attackers.push(attacker);
    }
    let (mut longest, mut rounds) = (Duration::ZERO, 0);
    while attackers.iter_mut().all(|attacker| attacker.exited().is_none()) {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(answered(&pod, &pod.client, &mut longest).await?);
        }
        newcomer(&pod, &mut longest).await?;
        old.send(sds::ack(&last, &["default"]));
        pod.rotate()?;
        let next = old.recv().await.map_err(|failure| pod.shim.explain(failure))?;
        assert_ne!(serial(&next)?, serial(&last)?);
        last = next;
        for stream in &mut streams {
            stream.recv().await.map_err(|failure| pod.shim.explain(failure))?;
        }
        rounds += 1;
    }
    let count = |text| pod.shim.log().count(text);
    let (closed, applications) =
        (count("closed a connection on the SDS socket"), count("closed a connection on the Workload API socket"));
    println!("{attack} of {processes}: {rounds} rounds, {longest:?} at most, {applications} closed");
    assert_eq!(closed, 0, "{:#?}", pod.shim.log().lines());
    assert_eq!(count("serving SDS"), 1, "it was started again");
    for attacker in &mut attackers {
        attacker.wait_exit().await?;
    }
    is_served_again(&pod).await
}

#[tokio::test]
async fn announced_messages_keep_envoy_from_nothing() -> testkit::Result {
    envoy_goes_on_beside("Announced", 1).await
}

#[tokio::test]
async fn announced_messages_of_many_keep_envoy_from_nothing() -> testkit::Result {
    envoy_goes_on_beside("Announced", 16).await
}

#[tokio::test]
async fn half_sent_headers_keep_envoy_from_nothing() -> testkit::Result {
    envoy_goes_on_beside("HalfHeaders", 1).await
}

#[tokio::test]
async fn half_sent_headers_of_many_keep_envoy_from_nothing() -> testkit::Result {
    envoy_goes_on_beside("HalfHeaders", 16).await
}
