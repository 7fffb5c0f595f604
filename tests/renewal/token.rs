//! The projected service-account token: what is wrong with it is named, and a new one is used at once.

use std::time::{Duration, Instant};

use testkit::{
    OrFail,
    development_ca::{CaOptions, Outcome, TokenRequest},
    fixture::{Open, Site, renew, token, tokens, within},
    shim::Shim,
};

/// Well below the half minute after which the file is looked at without a change.
const AT_ONCE: Duration = Duration::from_secs(10);

fn minted(edit: impl FnOnce(&mut TokenRequest)) -> String {
    let mut request = TokenRequest::new("foo", "sleep");
    edit(&mut request);
    tokens().mint(&request)
}

/// No line of the log may hold a part of the token: its payload and signature are all that is not public knowledge.
fn assert_not_logged(shim: &Shim, token: &str) {
    for part in token.split('.').skip(1).filter(|part| part.len() > 8) {
        assert!(!shim.log().contains(&part[..part.len() / 2]), "the log tells a token");
        assert!(!shim.log().contains(&part[part.len() / 2..]), "the log tells a token");
    }
}

/// With `bad` in the volume (nothing when `None`), the log names it by all of `reasons`, the CA is left alone, and a
/// good token that takes its place brings the certificate.
async fn is_named_and_then_replaced(bad: Option<String>, reasons: &[&str]) -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    if let Some(bad) = &bad {
        scene.write_token(bad)?;
    }
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let line = shim.wait_for_log(reasons[0]).await?;
    assert!(reasons.iter().all(|reason| line.contains(reason)), "{reasons:?} in {line}");
    stream.expect_silence(&shim).await?;
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (0, 0), "the CA is not asked in vain");

    let replaced = Instant::now();
    let good = token();
    scene.write_token(&good)?;
    let secret = stream.next(&shim).await?;
    assert!(replaced.elapsed() < AT_ONCE, "the change was seen, not found by chance");
    assert_eq!(secret.spiffe_ids()?, [scene.workload.spiffe_id()]);
    assert_eq!(scene.ca.calls().len(), 1);
    assert_eq!(shim.log().count(reasons[0]), 1, "said once");
    for token in bad.iter().chain([&good]) {
        assert_not_logged(&shim, token);
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_token_is_named() -> testkit::Result {
    is_named_and_then_replaced(None, &["cannot read token file", "./var/run/secrets/tokens/istio-token"]).await
}

#[tokio::test]
async fn an_empty_token_is_named() -> testkit::Result {
    is_named_and_then_replaced(Some(String::new()), &["the token is empty"]).await
}

#[tokio::test]
async fn a_token_file_that_is_not_a_jwt_is_named() -> testkit::Result {
    is_named_and_then_replaced(Some("bm90IGEgand0IGF0IGFsbA".to_owned()), &["the token is not a JWT"]).await
}

#[tokio::test]
async fn an_unreadable_payload_is_named() -> testkit::Result {
    let token = token();
    let (header, rest) = token.split_once('.').unwrap_or_default();
    let signature = rest.split_once('.').unwrap_or_default().1;
    is_named_and_then_replaced(Some(format!("{header}.AAAAAAAAAAAA.{signature}")), &["the token is not a JWT"]).await
}

#[tokio::test]
async fn a_token_that_is_far_too_large_is_named() -> testkit::Result {
    is_named_and_then_replaced(Some("x".repeat(100_000)), &["the token is larger than"]).await
}

#[tokio::test]
async fn an_expired_token_is_named() -> testkit::Result {
    let expired = minted(|request| (request.not_before, request.lifetime) = (-7200, -3600));
    is_named_and_then_replaced(Some(expired), &["the token expired 36", "exp ", "now "]).await
}

#[tokio::test]
async fn a_token_for_another_audience_is_named_with_both_audiences() -> testkit::Result {
    let other = minted(|request| request.audiences = vec!["vault".to_owned(), "api".to_owned()]);
    is_named_and_then_replaced(Some(other), &["audience", r#"["vault", "api"]"#, r#""istio-ca""#]).await
}

#[tokio::test]
async fn a_token_without_an_audience_is_named() -> testkit::Result {
    let none = minted(|request| request.audiences.clear());
    is_named_and_then_replaced(Some(none), &["audience is []", "istio-ca"]).await
}

#[tokio::test]
async fn the_wanted_audience_can_be_set() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions { audience: "mesh".to_owned(), ..CaOptions::default() }).await?;
    scene.write_token(&minted(|request| request.audiences = vec!["other".to_owned(), "mesh".to_owned()]))?;
    let mut shim = scene.shim().env("SDS_SHIM_TOKEN_AUDIENCE", "mesh").start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_newline_after_the_token_does_no_harm() -> testkit::Result {
    let mut scene = Site::new().await?;
    scene.write_token(&(token() + "\n"))?;
    let mut shim = scene.shim().start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_written_in_place_is_seen() -> testkit::Result {
    let mut scene = Site::new().await?;
    scene.write_token("")?;
    let mut shim = scene.shim().start()?;
    shim.wait_for_log("the token is empty").await?;
    testkit::fixture::write(&scene.workload.token_file(), &token())?;
    let written = Instant::now();
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert!(written.elapsed() < AT_ONCE);
    Ok(())
}

#[tokio::test]
async fn a_token_that_the_ca_refuses_is_replaced_at_once() -> testkit::Result {
    let mut scene = Site::new().await?;
    let foreign = minted(|request| request.issuer = "https://elsewhere".to_owned());
    scene.write_token(&foreign)?;
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    shim.wait_for_log("the CA answered UNAUTHENTICATED: request authenticate failure").await?;
    scene.write_token(&token())?;
    let secret = stream.next(&shim).await?;
    assert_eq!(scene.issued(), [secret.serial()?]);
    let calls = scene.ca.calls();
    let refused = calls
        .iter()
        .filter(|call| matches!(&call.outcome, Outcome::Refused { reason, .. } if reason.contains("issuer")));
    assert_eq!(refused.count(), calls.len() - 1);
    assert_not_logged(&shim, &foreign);
    Ok(())
}

/// The service accounts whose tokens the calls carried.
fn subjects(scene: &Site) -> Vec<String> {
    let subject = |call: &testkit::development_ca::Call| {
        let authorization = call.authorization.as_ref().filter(|authorization| authorization.scheme == "Bearer");
        authorization.and_then(|authorization| authorization.subject.clone()).unwrap_or_default()
    };
    scene.ca.calls().iter().map(subject).collect()
}

#[tokio::test]
async fn each_call_carries_the_token_as_it_is_then() -> testkit::Result {
    let mut scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_CA_MTLS", "never").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;
    scene.write_token(&tokens().mint(&TokenRequest::new("foo", "other")))?;
    assert_eq!(scene.ca.calls().len(), 1, "a fresh token is no reason for a call");
    renew(&shim)?;
    shim.wait_for_log("the CA answered PERMISSION_DENIED").await?;
    scene.write_token(&token())?;
    let second = stream.next(&shim).await?.serial()?;
    assert_ne!(first, second);
    let subjects = subjects(&scene);
    assert_eq!(subjects[0], "system:serviceaccount:foo:sleep");
    assert_eq!(subjects[1], "system:serviceaccount:foo:other");
    assert_eq!(subjects.last().map(String::as_str), Some("system:serviceaccount:foo:sleep"));
    Ok(())
}

#[tokio::test]
async fn without_a_token_the_certificate_speaks_alone() -> testkit::Result {
    let mut scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;
    scene.workload.remove_token().or_fail("remove the token")?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    let call = scene.call(2, &shim).await?;
    assert_eq!(call.authorization, None);
    assert_eq!(call.peer.map(|peer| testkit::fixture::plain_serial(&peer.serial)), Some(first));
    assert_eq!(testkit::fixture::issued_serial(&scene.ca.calls()[1]), Some(second));
    Ok(())
}

#[tokio::test]
async fn a_removed_token_without_mutual_tls_keeps_the_certificate() -> testkit::Result {
    let mut scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_CA_MTLS", "never").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;
    scene.workload.remove_token().or_fail("remove the token")?;
    renew(&shim)?;
    shim.wait_for_log("still serving the current certificate").await?;
    assert_eq!(Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?, first);
    assert_eq!(scene.ca.calls().len(), 1);
    scene.write_token(&token())?;
    stream.next(&shim).await?;
    within(&shim, "the second call", scene.ca.wait_for_calls(2)).await
}

/// A token that goes bad between two renewals costs no call and no certificate; kubelet's swap brings the renewal.
#[tokio::test]
async fn a_bad_token_at_renewal_is_named_and_its_successor_used_at_once() -> testkit::Result {
    let expired = minted(|request| (request.not_before, request.lifetime) = (-7200, -3600));
    let foreign = minted(|request| request.audiences = vec!["vault".to_owned()]);
    let mut scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_CA_MTLS", "never").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let mut served = stream.next(&shim).await?.serial()?;
    for (bad, reason) in [
        (Some(expired), "the token expired"),
        (Some(foreign), "the token's audience is"),
        (Some(String::new()), "the token is empty"),
        (None, "cannot read token file"),
    ] {
        match bad {
            Some(bad) => scene.write_token(&bad)?,
            None => scene.workload.remove_token().or_fail("remove the token")?,
        }
        let (mark, calls) = (shim.log().mark(), scene.ca.calls().len());
        renew(&shim)?;
        let line = shim.wait_for_log_after(mark, "renewal failed: ").await?;
        assert!(line.contains(reason) && line.contains("still serving the current certificate"), "{line}");
        // A signal makes it look again, not ask.
        renew(&shim)?;
        assert_eq!(Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?, served);
        stream.expect_silence(&shim).await?;
        assert_eq!(scene.ca.calls().len(), calls, "the CA is not asked in vain");
        let replaced = Instant::now();
        scene.write_token(&token())?;
        served = stream.next(&shim).await?.serial()?;
        assert!(replaced.elapsed() < AT_ONCE, "the change was seen, not found by chance");
        assert_eq!(scene.ca.calls().len(), calls + 1);
        assert_eq!(shim.log().lines().iter().skip(mark).filter(|line| line.contains(reason)).count(), 1, "said once");
    }
    Ok(())
}
