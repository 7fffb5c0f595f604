//! A CA that answers errors, slowly, or not at all: the reason is named once, and the certificate comes when it can.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use testkit::{
    OrFail,
    development_ca::{CaOptions, DevelopmentCa, Fault, Outcome, Pki},
    door::own_address,
    fixture::{
        Open, Site,
        attempts::{failed, waits},
        renew, token, tokens, within,
    },
    sds,
};
use tokio::task::JoinSet;
use tonic::Code;

#[tokio::test]
async fn a_call_carries_the_metadata_and_a_deadline() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().env("ISTIO_META_CLUSTER_ID", "west").env("SECRET_TTL", "90m").start()?;
    let call = scene.call(1, &shim).await?;
    assert_eq!(call.header("clusterid"), Some("west"));
    assert_eq!(call.validity_duration, 5400);
    let authorization = call.authorization.as_ref().map(|found| (found.scheme.as_str(), found.subject.as_deref()));
    assert_eq!(authorization, Some(("Bearer", Some("system:serviceaccount:foo:sleep"))));
    let timeout = call.headers.iter().find(|(name, _)| name == "grpc-timeout");
    assert!(timeout.is_some(), "the CA is told how long we wait");
    assert_eq!(call.header("content-type"), Some("application/grpc"));
    Ok(())
}

const CODES: [(Code, &str); 16] = [
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

/// Each error is told with its name and the CA's words, once; the CA is asked again; and when it answers right,
/// the certificate is there.
async fn error_is_named_and_outlived(code: Code, name: &str) -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Status(code, format!("out of luck with {name}"))));
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let told = format!("the CA answered {name}: out of luck with {name}");
    shim.wait_for_log(&told).await?;
    for failures in 1..=3 {
        failed(&shim, 0, failures).await?;
        // A CA that is overloaded would be asked again only within half a minute.
        renew(&shim)?;
    }
    stream.expect_silence(&shim).await?;
    assert_eq!(shim.log().count(&told), 1, "{name} is told once");
    assert_eq!(scene.issued(), Vec::<String>::new());
    scene.ca.set_fault(None);
    renew(&shim)?;
    let secret = stream.next(&shim).await?;
    assert_eq!(scene.issued().first(), Some(&secret.serial()?));
    Ok(())
}

/// A gateway before the CA that is less patient than we are, and says so for it.
#[tokio::test]
async fn a_ca_that_is_slow_for_others_is_called_as_rarely_as_one_slow_for_us() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Status(Code::DeadlineExceeded, "upstream request timeout".to_owned())));
    let shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    // The bound is the longest of all by then, and the wait no less than two thirds of it.
    const FAILURES: usize = 13;
    for failures in 1..=FAILURES {
        failed(&shim, 0, failures).await?;
        if failures < FAILURES {
            renew(&shim)?;
        }
    }
    let waits = waits(&shim, 0);
    assert!(waits.last().is_some_and(|wait| (200_000..=300_000).contains(wait)), "{waits:?}");
    Ok(())
}

#[tokio::test]
async fn every_grpc_error_is_named_and_outlived() -> testkit::Result {
    let mut rows = JoinSet::new();
    for (code, name) in CODES {
        rows.spawn(
            async move { error_is_named_and_outlived(code, name).await.map_err(|failure| failure.context(name)) },
        );
    }
    while let Some(row) = rows.join_next().await {
        row.or_fail("see a row of the table through")??;
    }
    Ok(())
}

#[tokio::test]
async fn the_cas_error_text_is_truncated_and_sanitised() -> testkit::Result {
    let scene = Site::new().await?;
    let words = format!("line one\nline two {} {}", "A1b2".repeat(40), "blah ".repeat(1000));
    scene.ca.set_fault(Some(Fault::Status(Code::Internal, words)));
    let shim = scene.shim().start()?;
    let line = shim.wait_for_log("the CA answered INTERNAL: line one").await?;
    assert!(line.contains("line one line two [redacted] blah"), "{line}");
    assert!(line.len() < 600, "{} bytes", line.len());
    Ok(())
}

#[tokio::test]
async fn a_slow_answer_within_the_deadline_is_taken() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Delay(Duration::from_millis(700))));
    let mut shim = scene.shim().start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(scene.issued(), [secret.serial()?]);
    assert_eq!(scene.ca.calls().len(), 1);
    Ok(())
}

/// As with istio-csr where somebody approves by hand: it issues for as long as the call is open, and drops the request
/// with it.
#[tokio::test]
async fn an_issuer_that_takes_its_time_is_waited_for() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Delay(Duration::from_secs(12))));
    let mut shim = scene.shim().start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(scene.issued(), [secret.serial()?]);
    assert_eq!(scene.ca.calls().len(), 1, "the same call all the time");
    Ok(())
}

#[tokio::test]
async fn the_deadline_is_named_when_the_answer_is_too_slow() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Delay(Duration::from_secs(60))));
    let mut shim = scene.shim().env("SDS_SHIM_CA_ANSWER_TIMEOUT", "300ms").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("no answer within 0.3 s (SDS_SHIM_CA_ANSWER_TIMEOUT)").await?;
    scene.ca.set_fault(None);
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_ca_that_never_answers_is_given_up_and_asked_again() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Hang));
    let mut shim = scene.shim().env("SDS_SHIM_CA_ANSWER_TIMEOUT", "400ms").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("no answer within 0.4 s (SDS_SHIM_CA_ANSWER_TIMEOUT)").await?;
    // The call is taken back, not only forgotten.
    within(&shim, "abandoned calls", scene.ca.wait_for_outcomes(2)).await?;
    assert!(scene.ca.calls()[..2].iter().all(|call| call.outcome == Outcome::Abandoned));
    stream.expect_silence(&shim).await?;
    scene.ca.set_fault(None);
    stream.next(&shim).await?;
    assert_eq!(shim.log().count("SDS_SHIM_CA_ANSWER_TIMEOUT"), 1);
    Ok(())
}

#[tokio::test]
async fn a_hanging_call_does_not_keep_the_process_from_ending() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Hang));
    let mut shim = scene.shim().start()?;
    within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
    assert!(shim.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn closed_connections_are_named_and_outlived() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::DropConnection));
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("TLS handshake with localhost:").await?;
    within(&shim, "two more tries", scene.ca.wait_for_connections(3)).await?;
    stream.expect_silence(&shim).await?;
    scene.ca.set_fault(None);
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_breaks_during_the_call_is_named_and_outlived() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.push_fault(Fault::Hang);
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
    scene.ca.disconnect();
    shim.wait_for_log("the connection broke").await?;
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_ca_that_does_not_listen_is_named_and_found_later() -> testkit::Result {
    let pki = Arc::new(Pki::new("test"));
    let options = CaOptions { listen: own_address(), ..CaOptions::default() };
    let mut scene = Site::with_pki(Arc::clone(&pki), options.clone()).await?;
    scene.write_token(&token())?;
    let address = scene.ca.address();
    let shim = scene.shim().env("CA_ADDR", address.to_string()).env("ISTIOD_SAN", "istiod.istio-system.svc");
    let Site { ca, workload, .. } = &mut scene;
    // Stands in for the CA that goes away; it has to be somewhere until the one at the old address is back.
    let away = DevelopmentCa::start(Arc::clone(&pki), tokens(), CaOptions::default()).await.or_fail("start a CA")?;
    std::mem::replace(ca, away).stop().await;

    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log(&format!("cannot connect to {address}")).await?;
    assert!(line.to_lowercase().contains("connection refused"), "{line}");
    stream.expect_silence(&shim).await?;
    let back = DevelopmentCa::start(pki, tokens(), CaOptions { listen: address, ..options }).await;
    let back = back.or_fail("start the CA again")?;
    let secret = stream.next(&shim).await?;
    assert_eq!(secret.spiffe_ids()?, [workload.spiffe_id()]);
    assert_eq!(back.calls().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    // Reserved never to exist (RFC 6761, section 6.4).
    let shim = scene.shim().env("CA_ADDR", "istiod.invalid:15012").env("SDS_SHIM_CA_TIMEOUT", "25s");
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("cannot resolve istiod.invalid").await?;
    stream.expect_silence(&shim).await?;
    assert!(shim.exited().is_none());
    Ok(())
}

#[tokio::test]
async fn before_the_first_certificate_every_variant_waits() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "not yet".to_owned())));
    let mut shim = scene.shim().start()?;
    shim.wait_for_log("UNAVAILABLE: not yet").await?;
    let client = shim.connect().await?;
    let mut default = Open::new(&client, "default");
    let mut root = Open::new(&client, "ROOTCA");
    let mut delta = client.delta();
    delta.send(sds::delta_request(&["default", "ROOTCA"], &[]));
    let fetching = client.clone();
    let fetch = tokio::spawn(async move { fetching.fetch(sds::request(&["default"])).await });
    default.expect_silence(&shim).await?;
    root.expect_silence(&shim).await?;
    delta.expect_silence(Duration::from_millis(1)).await?;
    assert!(!fetch.is_finished());
    scene.ca.set_fault(None);
    let serial = default.next(&shim).await?.serial()?;
    assert_eq!(root.next(&shim).await?.trusted_ca_pem.trim(), scene.pki.root_pem().trim());
    assert_eq!(sds::delta_secrets(&delta.recv().await?)?.len(), 2);
    let fetched = fetch.await.or_fail("join")?.or_fail("fetch")?;
    assert_eq!(sds::secrets(&fetched)?[0].serial()?, serial);
    Ok(())
}

#[tokio::test]
async fn further_headers_and_the_signer_are_sent_on() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().env("CA_HEADER_X-Tenant", "blue").env("CA_HEADER_REGION", "west");
    let shim = shim.env("ISTIO_META_CERT_SIGNER", "signer.example/one").start()?;
    let call = scene.call(1, &shim).await?;
    assert_eq!((call.header("x-tenant"), call.header("region")), (Some("blue"), Some("west")));
    assert_eq!(call.metadata, [("CertSigner".to_owned(), "signer.example/one".to_owned())]);
    assert!(!shim.log().contains("blue"), "a header's value may be a credential");
    Ok(())
}

#[tokio::test]
async fn port_15010_is_spoken_to_without_tls() -> testkit::Result {
    let listen = SocketAddr::new(own_address().ip(), 15010);
    let scene = Site::with(CaOptions { listen, plaintext: true, ..CaOptions::default() }).await?;
    let mut shim = scene.shim().env("CA_ADDR", listen.to_string()).start()?;
    let secret = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(scene.issued(), [secret.serial()?]);
    Ok(())
}
