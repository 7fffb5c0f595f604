//! From the first certificate on: rotations, outages, restarts.

use nix::sys::signal::Signal;
use testkit::{
    OrFail, PATIENCE,
    agent::{Agent, Answer},
    confined::{self, Confinement},
    development_ca::Leaf,
    fixture::{Logged, QUIET, Site, delta_names, secret},
    sds,
    shim::ShimBuilder,
    workload_api::{self, WorkloadApi},
};
use tokio::time::Instant;
use tonic::Code;

use crate::scene::{ID, LIFE, Scene, issue, shim, socket, told};

#[tokio::test]
async fn each_certificate_is_served_as_received_and_no_ca_is_called() -> testkit::Result {
    let mut first = None;
    let mut scene = Scene::new(|site| {
        let issued = first.insert(issue(site, ID));
        told(site, issued, ID)
    })
    .await?;
    scene.serves(&first.expect("it was issued")).await?;
    let client = scene.shim.connect().await?;
    let answer = client.fetch(sds::request(&["ROOTCA"])).await.or_fail("fetch")?;
    assert_eq!(secret(&answer, "ROOTCA")?.trusted_ca_pem, scene.site.pki.root_pem());
    for _ in 0..3 {
        let issued = scene.renew()?;
        scene.serves(&issued).await?;
    }
    // The same once more is no news.
    let calls = scene.agent.calls();
    let mut renew = scene.site.shim().arg("renew").start()?;
    assert!(renew.wait_exit().await?.success(), "{:?}", renew.log().lines());
    assert!(renew.log().contains("returned the certificate already served: it decides when to renew"));
    scene.shim.wait_for_log("requested by signal: asking the Workload API again").await?;
    assert_eq!(scene.agent.calls(), calls + 1);
    scene.stream.expect_silence(QUIET).await?;
    assert_eq!(scene.shim.log().count("received a certificate from the Workload API"), 4);
    assert!(scene.site.ca.calls().is_empty(), "the CA was called");
    let status = scene.page("/status").await?;
    let source = format!("the SPIFFE Workload API at {}", socket(&scene.site).display());
    assert!(status.contains(&source) && status.contains(ID), "{status}");
    assert_eq!(scene.page("/readyz").await?.trim(), "ok");
    let mut table = scene.site.shim().arg("status").arg("--table").start()?;
    assert!(table.wait_exit().await?.success());
    assert!(table.log().contains("renewal  handled by its source; last success"), "{:?}", table.log().lines());
    let metrics = scene.page("/metrics").await?;
    assert!(metrics.contains("sds_shim_renewals_total 4"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn check_says_where_the_identity_comes_from() -> testkit::Result {
    let site = Site::new().await?;
    let _agent = Agent::start(&socket(&site), Answer::Silence)?;
    let mut check = shim(&site).env("SDS_SHIM_SPIFFE_ID", ID).arg("check").start()?;
    let code = check.wait_exit().await?.code();
    let text = check.log().lines().join("\n");
    assert_eq!(code, Some(0), "{text}");
    let at = socket(&site);
    for expected in [
        format!("identity {ID}\n"),
        format!("source   the SPIFFE Workload API at {}\n", at.display()),
        format!("ok       {}", at.display()),
        "ROOTCA   from the same source\n".to_owned(),
        "SDS_SHIM_SOURCE = spiffe  (environment)\n".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected:?} is not in {text}");
    }
    // Its token and its CA are not what it would use.
    assert!(!text.contains("CA       ") && !text.contains("the token is for"), "{text}");
    Ok(())
}

#[tokio::test]
async fn delta_streams_get_what_changes_alone() -> testkit::Result {
    let mut scene = Scene::new(|site| told(site, &issue(site, ID), ID)).await?;
    scene.next().await?;
    let mut delta = scene.shim.connect().await?.delta();
    delta.send(sds::delta_request(&["default", "ROOTCA"], &[]));
    let first = delta.recv().await?;
    assert_eq!(delta_names(&first)?, ["ROOTCA", "default"]);
    delta.send(sds::delta_ack(&first));
    let issued = scene.renew()?;
    scene.serves(&issued).await?;
    let next = delta.recv().await?;
    assert_eq!(delta_names(&next)?, ["default"]);
    assert_eq!(sds::delta_secrets(&next)?.remove(0).chain_pem, issued.chain_pem);
    Ok(())
}

#[tokio::test]
async fn an_agent_that_comes_late_is_asked_at_once() -> testkit::Result {
    let site = Site::new().await?;
    // Connected to from inside of the narrowest sandbox.
    let shim = shim(&site).env("SDS_SHIM_SECCOMP", "strict").env("SDS_SHIM_LANDLOCK", "strict");
    let mut shim = Logged(shim.start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    shim.wait_for_log("cannot obtain a certificate: no Workload API at").await?;
    let ready = shim.admin("/readyz").await?.text();
    assert!(ready.contains("default is not available yet: no Workload API at"), "{ready}");
    // It is there, and does not know us yet.
    let agent = Agent::start(&socket(&site), Answer::Refusal(Code::PermissionDenied, "no identity issued"))?;
    shim.wait_for_log("the Workload API answered PERMISSION_DENIED: no identity issued; Envoy waits").await?;
    agent.tell(Answer::Silence);
    let calls = agent.calls();
    shim.until("another call", || (agent.calls() > calls).then_some(())).await?;
    stream.expect_silence(QUIET).await?;
    let (issued, at) = (issue(&site, ID), Instant::now());
    agent.tell(told(&site, &issued, ID)?);
    let served = sds::secrets(&stream.recv().await?)?.remove(0);
    println!("served {:?} after it was told", at.elapsed());
    assert_eq!(served.chain_pem, issued.chain_pem);
    shim.wait_for_log("renewal succeeded after").await?;
    Ok(())
}

#[tokio::test]
async fn the_last_good_certificate_outlives_the_agent() -> testkit::Result {
    let mut scene = Scene::new(|site| told(site, &issue(site, ID), ID)).await?;
    scene.next().await?;
    for refusal in [Code::PermissionDenied, Code::Unavailable] {
        let mark = scene.shim.log().mark();
        scene.agent.tell(Answer::Refusal(refusal, "gone for the test"));
        let line = scene.shim.wait_for_log_after(mark, "renewal failed: ").await?;
        assert!(line.contains("gone for the test; still serving the current certificate until"), "{line}");
        assert_eq!(scene.page("/readyz").await?.trim(), "ok");
        let issued = scene.renew()?;
        scene.serves(&issued).await?;
    }
    // Its process ends, and another takes its place.
    let mark = scene.shim.log().mark();
    drop(std::mem::replace(
        &mut scene.agent,
        Agent::start(&socket(&scene.site).with_extension("other"), Answer::Silence)?,
    ));
    scene.shim.wait_for_log_after(mark, "renewal failed: ").await?;
    scene.stream.expect_silence(QUIET).await?;
    let issued = issue(&scene.site, ID);
    scene.agent = Agent::start(&socket(&scene.site), told(&scene.site, &issued, ID)?)?;
    scene.serves(&issued).await?;
    assert_eq!(scene.page("/readyz").await?.trim(), "ok");
    Ok(())
}

/// One that takes a call and never answers: it is asked again, and what is held stays.
#[tokio::test]
async fn an_agent_that_hangs_is_asked_again() -> testkit::Result {
    let short = |site: &Site| -> testkit::Result<Answer> {
        let leaf = Leaf { not_before: -50, not_after: 15, ..Leaf::workload(ID, LIFE) };
        told(site, &site.pki.issue(&leaf), ID)
    };
    let mut scene = Scene::new(short).await?;
    scene.next().await?;
    // Less than a fifth of its life is left in two seconds.
    scene.agent.tell(Answer::Silence);
    let calls = scene.agent.calls();
    scene.shim.wait_for_log("the Workload API has not renewed the certificate, which expires at").await?;
    scene.shim.until("another call", || (scene.agent.calls() > calls).then_some(())).await?;
    let issued = scene.renew()?;
    scene.serves(&issued).await
}

/// What it had is handed on in secret memory, and served until there is an agent again.
#[tokio::test]
async fn a_crash_costs_nothing_while_the_agent_is_away() -> testkit::Result {
    let with = |shim: ShimBuilder| shim.confined(Confinement::CLOSED);
    let mut scene = Scene::with(|site| told(site, &issue(site, ID), ID), with).await?;
    let served = scene.next().await?;
    let place = socket(&scene.site);
    let mark = scene.shim.log().mark();
    drop(std::mem::replace(&mut scene.agent, Agent::start(&place.with_extension("other"), Answer::Silence)?));
    scene.shim.wait_for_log_after(mark, "renewal failed: ").await?;
    for _ in 0..2 {
        let mark = scene.shim.log().mark();
        scene.shim.expect_crashes();
        confined::crash(scene.shim.pid())?;
        scene.shim.wait_for_log_after(mark, "still serving the certificate from before the crash").await?;
        scene.stream = scene.shim.connect().await?.stream();
        scene.stream.send(sds::request(&["default"]));
        let again = scene.next().await?;
        assert!(again.chain_pem == served.chain_pem && again.key_pem == served.key_pem);
        let client = scene.shim.connect().await?;
        let answer = client.fetch(sds::request(&["ROOTCA"])).await.or_fail("fetch")?;
        assert_eq!(secret(&answer, "ROOTCA")?.trusted_ca_pem, scene.site.pki.root_pem());
    }
    let issued = issue(&scene.site, ID);
    scene.agent = Agent::start(&place, told(&scene.site, &issued, ID)?)?;
    scene.serves(&issued).await
}

/// A server that ends each stream after its message must not be called without an end.
#[tokio::test]
async fn streams_that_end_are_opened_again_in_growing_steps() -> testkit::Result {
    let last = |answer| match answer {
        Answer::Message(message) => Answer::Last(message),
        other => other,
    };
    let mut scene = Scene::new(|site| Ok(last(told(site, &issue(site, ID), ID)?))).await?;
    scene.next().await?;
    let started = Instant::now();
    scene.shim.until("eight calls", || (scene.agent.calls() >= 8).then_some(())).await?;
    let (calls, lasted) = (scene.agent.calls(), started.elapsed());
    println!("{calls} calls in {lasted:?}");
    scene.stream.expect_silence(QUIET).await?;
    // Waits of up to 0.25, 0.5, 1, 2, … s, each drawn: eight in a row without any would be a loop.
    assert!(lasted.as_millis() >= 250, "{calls} calls in {lasted:?}");
    let issued = issue(&scene.site, ID);
    scene.agent.tell(last(told(&scene.site, &issued, ID)?));
    scene.serves(&issued).await
}

/// One that asks the agent and is one to others.
#[tokio::test]
async fn a_shim_serves_another_shim() -> testkit::Result {
    let (above, below) = (Site::new().await?, Site::new().await?);
    let api = workload_api::socket(&above);
    let upper = || above.shim().env("SDS_SHIM_WORKLOAD_API", workload_api::at(&api));
    let mut first = Logged(upper().start()?);
    first.connect().await?;
    let lower_api = workload_api::socket(&below);
    let lower = below.shim().env("SDS_SHIM_SOURCE", "spiffe").env("SPIFFE_ENDPOINT_SOCKET", workload_api::at(&api));
    let mut lower = Logged(lower.env("SDS_SHIM_WORKLOAD_API", workload_api::at(&lower_api)).start()?);
    let mut stream = lower.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let mut serials = Vec::new();
    for round in 0..4 {
        let answer = stream.recv_within(PATIENCE).await.map_err(|failure| lower.explain(failure))?;
        stream.send(sds::ack(&answer, &["default"]));
        let served = sds::secrets(&answer)?.remove(0);
        assert_eq!(served.spiffe_ids()?, [above.workload.spiffe_id()]);
        assert_eq!(Some(&served.serial()?), above.issued().last());
        let (svid, _) = WorkloadApi::wait_for(&lower_api).await?.svid().await?;
        let key = served.key()?;
        assert!(svid.key.public_eq(&key));
        assert!(!serials.contains(&served.serial()?));
        serials.push(served.serial()?);
        match round {
            // It is started anew, with another certificate.
            1 => {
                first.terminate().await?;
                first = Logged(upper().start()?);
            }
            _ => first.signal(Signal::SIGUSR1)?,
        }
    }
    assert!(below.ca.calls().is_empty());
    Ok(())
}

/// Keys of every kind, as Envoy is to have them.
#[tokio::test]
async fn keys_of_every_kind_are_served() -> testkit::Result {
    for (variables, begins) in [
        (&[("ECC_CURVE", "P384")][..], "-----BEGIN EC PRIVATE KEY-----"),
        (&[("WORKLOAD_RSA_KEY_SIZE", "2048")], "-----BEGIN RSA PRIVATE KEY-----"),
        (&[("WORKLOAD_RSA_KEY_SIZE", "4096")], "-----BEGIN RSA PRIVATE KEY-----"),
    ] {
        // Another shim makes keys of this kind.
        let (above, below) = (Site::new().await?, Site::new().await?);
        let api = workload_api::at(&workload_api::socket(&above));
        let upper = variables.iter().fold(above.shim(), |shim, (name, value)| shim.env(*name, *value));
        let mut upper = Logged(upper.env("SDS_SHIM_WORKLOAD_API", &api).start()?);
        upper.connect().await?;
        let lower = below.shim().env("SDS_SHIM_SOURCE", "spiffe").env("SPIFFE_ENDPOINT_SOCKET", &api);
        let mut lower = Logged(lower.env("PKCS8_KEY", "false").start()?);
        let mut stream = lower.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        let answer = stream.recv_within(4 * PATIENCE).await.map_err(|failure| lower.explain(failure))?;
        let served = sds::secrets(&answer)?.remove(0);
        assert!(served.key_pem.starts_with(begins), "{variables:?}");
        assert!(served.key_fits_leaf()?);
    }
    Ok(())
}
