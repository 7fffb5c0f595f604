//! Tokens that come with the SDS request, as in Istio 1.1: each serves its own identity, and nothing before the CA
//! has accepted it.

use std::time::Duration;

use testkit::{
    Failure,
    development_ca::{Algorithm, CaOptions, Fault, Outcome, TokenIssuer, TokenRequest},
    fixture::{Open, Site, issued_serial, plain_serial, renew, tokens, within},
    sds::{self, Closed, SdsClient},
    shim::{Shim, ShimBuilder},
    workload::spiffe_id,
};
use tonic::Code;

const ISTIO_1_1_HEADER: &str = "istio_sds_credentials_header-bin";

/// A CA and a pod without a token and without a name of its own.
async fn scene() -> Result<Site, Failure> {
    Site::without_token(CaOptions::default()).await
}

fn shim(scene: &Site) -> ShimBuilder {
    let shim = scene.shim().without("POD_NAMESPACE").without("SERVICE_ACCOUNT").without("POD_NAME");
    shim.env("SDS_SHIM_TOKEN_SOURCE", "request").env("SDS_SHIM_LOG", "debug")
}

fn token(service_account: &str) -> String {
    tokens().mint(&TokenRequest::new("foo", service_account))
}

async fn connect(shim: &mut Shim, token: &str) -> Result<SdsClient, Failure> {
    shim.connect().await?.with_token(token)
}

/// Every variant must be refused with `reason`.
async fn assert_refused(client: &SdsClient, shim: &Shim, reason: &str) -> testkit::Result {
    let refusal = |closed: &Closed| match closed {
        Closed::Status(status) => (status.code(), status.message().to_owned()),
        Closed::Ok => (Code::Ok, String::new()),
    };
    let mut delta = client.delta();
    delta.send(sds::delta_request(&["default"], &[]));
    let delta = delta.expect_closed().await.map_err(|failure| shim.explain(failure))?;
    let stream = Open::new(client, "default").expect_closed(shim).await?;
    let fetch = client.fetch(sds::request(&["default"])).await;
    let fetch = fetch.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()));
    for (code, message) in [refusal(&delta), refusal(&stream), fetch] {
        assert_eq!(code, Code::Unauthenticated, "{message}");
        assert!(message.contains(reason), "{reason:?} in {message:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bearer_token_brings_the_certificate_of_its_account() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let client = connect(&mut shim, &token("sleep")).await?;
    let secret = Open::new(&client, "default").next(&shim).await?;
    assert_eq!(secret.spiffe_ids()?, [spiffe_id("foo", "sleep")]);
    let call = scene.call(1, &shim).await?;
    assert_eq!(issued_serial(&call), Some(secret.serial()?));
    let subject = call.authorization.and_then(|authorization| authorization.subject);
    assert_eq!(subject.as_deref(), Some("system:serviceaccount:foo:sleep"));
    Ok(())
}

#[tokio::test]
async fn the_header_of_istio_1_1_is_accepted() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    for (number, prefix) in ["", "Bearer "].into_iter().enumerate() {
        let token = format!("{prefix}{}", token("sleep"));
        let client = shim.connect().await?.with_metadata(ISTIO_1_1_HEADER, token)?;
        let secret = Open::new(&client, "default").next(&shim).await?;
        assert_eq!(secret.spiffe_ids()?, [spiffe_id("foo", "sleep")], "{prefix:?}");
        let call = scene.call(number + 1, &shim).await?;
        assert_eq!(call.authorization.map(|authorization| authorization.scheme).as_deref(), Some("Bearer"));
    }
    Ok(())
}

#[tokio::test]
async fn a_request_without_a_token_is_unauthenticated() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let client = shim.connect().await?;
    assert_refused(&client, &shim, "carries no service-account token").await?;
    // That somebody else has brought one changes nothing.
    Open::new(&connect(&mut shim, &token("sleep")).await?, "default").next(&shim).await?;
    assert_refused(&client, &shim, "carries no service-account token").await?;
    assert_eq!(scene.ca.calls().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_token_that_cannot_be_used_is_refused_with_the_reason() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let request = || TokenRequest::new("foo", "sleep");
    let minted = |request: TokenRequest| tokens().mint(&request);
    let with_subject = |subject: &str| {
        let mut claims = tokens().claims(&request());
        claims["sub"] = subject.into();
        tokens().mint_claims(&claims, Algorithm::Es256)
    };
    for (token, reason) in [
        (minted(TokenRequest { not_before: -7200, lifetime: -3600, ..request() }), "the token expired 36"),
        (
            minted(TokenRequest { audiences: vec!["vault".to_owned()], ..request() }),
            r#"audience is ["vault"], the CA wants "istio-ca""#,
        ),
        ("opaque".to_owned(), "the token is not a JWT"),
        (with_subject("joe"), "subject is not a service account"),
        (with_subject("system:serviceaccount:foo:a/../b"), "subject is not a service account"),
        (with_subject("system:serviceaccount:foo"), "subject is not a service account"),
    ] {
        let client = connect(&mut shim, &token).await?;
        assert_refused(&client, &shim, reason).await?;
    }
    assert_refused(&shim.connect().await?.with_metadata("authorization", "Basic Zm9vOmJhcg==")?, &shim, "not a JWT")
        .await?;
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn each_stream_gets_the_identity_of_its_own_token_only() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let (sleep, other) = (token("sleep"), token("other"));
    // Both tokens over one connection, as one process with both could send them.
    let client = shim.connect().await?;
    let mut streams = Vec::new();
    for (token, account) in [(&sleep, "sleep"), (&other, "other")] {
        let client = client.clone().with_token(token)?;
        let mut stream = Open::new(&client, "default");
        let secret = stream.next(&shim).await?;
        assert_eq!(secret.spiffe_ids()?, [spiffe_id("foo", account)]);
        streams.push((stream, account, secret));
    }
    assert_ne!(streams[0].2.key_pem, streams[1].2.key_pem);
    renew(&shim)?;
    for (stream, account, before) in &mut streams {
        let secret = stream.next(&shim).await?;
        assert_eq!(secret.spiffe_ids()?, [spiffe_id("foo", account)], "after a renewal too");
        assert_ne!(secret.serial()?, before.serial()?);
        stream.expect_silence(&shim).await?;
    }
    within(&shim, "four calls", scene.ca.wait_for_outcomes(4)).await?;
    for call in scene.ca.calls() {
        let subject = call.authorization.and_then(|authorization| authorization.subject).unwrap_or_default();
        let account = subject.rsplit(':').next().unwrap_or_default();
        let own = call.peer.is_none_or(|peer| peer.spiffe_id == Some(spiffe_id("foo", account)));
        assert!(own, "a certificate of one token was presented with another");
        assert!(matches!(&call.outcome, Outcome::Issued { spiffe_id: id, .. } if *id == spiffe_id("foo", account)));
    }
    Ok(())
}

/// While `good` is served, `forged` gets nothing, and what `good` has is not touched.
async fn forged_gets_nothing(good: &str, forged: &str, reason: &str) -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let client = connect(&mut shim, good).await?;
    let mut stream = Open::new(&client, "default");
    let secret = stream.next(&shim).await?;
    let thief = connect(&mut shim, forged).await?;
    assert_refused(&thief, &shim, "UNAUTHENTICATED: request authenticate failure").await?;
    // Nor with the two headers mixed: the one that is looked at first is the one that counts.
    let mixed = thief.clone().with_metadata(ISTIO_1_1_HEADER, good)?;
    assert_refused(&mixed, &shim, "UNAUTHENTICATED").await?;
    let calls = scene.ca.calls();
    assert_eq!(calls.len(), 2, "a refused token is not shown to the CA again at once");
    assert!(matches!(&calls[1].outcome, Outcome::Refused { reason: r, .. } if r.contains(reason)), "{:?}", calls[1]);
    assert!(calls[1].peer.is_none(), "another's certificate is no help to the forged token");
    stream.expect_silence(&shim).await?;
    assert_eq!(Open::new(&client, "default").next(&shim).await?.key_pem, secret.key_pem);
    Ok(())
}

#[tokio::test]
async fn the_same_claims_signed_by_somebody_else_get_nothing() -> testkit::Result {
    let claims = tokens().claims(&TokenRequest::new("foo", "sleep"));
    let good = tokens().mint_claims(&claims, Algorithm::Es256);
    let forged = TokenIssuer::new().mint_claims(&claims, Algorithm::Es256);
    forged_gets_nothing(&good, &forged, "unknown key").await
}

#[tokio::test]
async fn a_served_token_with_another_signature_gets_nothing() -> testkit::Result {
    let (good, other) = (token("sleep"), token("sleep"));
    let signature = other.rsplit('.').next().unwrap_or_default();
    let head = good.rsplit_once('.').unwrap_or_default().0;
    forged_gets_nothing(&good, &format!("{head}.{signature}"), "bad signature").await
}

#[tokio::test]
async fn streams_and_reconnects_with_the_same_token_cost_one_csr() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let token = token("sleep");
    let client = connect(&mut shim, &token).await?;
    let (mut default, mut root) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    let serial = default.next(&shim).await?.serial()?;
    assert_eq!(root.next(&shim).await?.trusted_ca_pem, scene.pki.root_pem());
    drop((default, root, client));
    for _ in 0..20 {
        let client = connect(&mut shim, &token).await?;
        assert_eq!(Open::new(&client, "default").next(&shim).await?.serial()?, serial);
    }
    assert_eq!((scene.ca.calls().len(), scene.ca.connections()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn reconnects_before_the_first_certificate_cost_nothing() -> testkit::Result {
    let scene = scene().await?;
    scene.ca.set_fault(Some(Fault::Hang));
    let mut shim = shim(&scene).env("SDS_SHIM_CA_ANSWER_TIMEOUT", "10m").start()?;
    let token = token("sleep");
    let mut stream = Open::new(&connect(&mut shim, &token).await?, "default");
    within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
    for _ in 0..20 {
        let client = connect(&mut shim, &token).await?;
        Open::new(&client, "default").expect_silence(&shim).await?;
    }
    stream.expect_silence(&shim).await?;
    assert_eq!(scene.ca.connections(), 1);
    scene.ca.set_fault(None);
    scene.ca.disconnect();
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_is_waited_for_with_the_stream_open() -> testkit::Result {
    let scene = scene().await?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    let mut shim = shim(&scene).start()?;
    let mut stream = Open::new(&connect(&mut shim, &token("sleep")).await?, "default");
    within(&shim, "two calls", scene.ca.wait_for_outcomes(2)).await?;
    stream.expect_silence(&shim).await?;
    scene.ca.set_fault(None);
    stream.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_renewal_is_pushed_to_the_open_stream() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let mut stream = Open::new(&connect(&mut shim, &token("sleep")).await?, "default");
    let first = stream.next(&shim).await?;
    renew(&shim)?;
    let second = stream.next(&shim).await?;
    assert_ne!(first.serial()?, second.serial()?);
    assert_ne!(first.key_pem, second.key_pem);
    let call = scene.call(2, &shim).await?;
    assert!(call.authorization.is_some());
    assert_eq!(call.peer.map(|peer| plain_serial(&peer.serial)), Some(first.serial()?));
    Ok(())
}

/// Serves a token until it has expired, and asks for a renewal then.
async fn renew_after_the_token(scene: &Site, shim: ShimBuilder) -> Result<(Shim, Open, String, String), Failure> {
    let lifetime = 5;
    let token = tokens().mint(&TokenRequest { lifetime, ..TokenRequest::new("foo", "sleep") });
    let expired = tokio::time::sleep(Duration::from_secs(lifetime.unsigned_abs() + 1));
    let mut shim = shim.start()?;
    let mut stream = Open::new(&connect(&mut shim, &token).await?, "default");
    let first = stream.next(&shim).await?.serial()?;
    assert_eq!(scene.ca.calls().len(), 1);
    expired.await;
    renew(&shim)?;
    Ok((shim, stream, first, token))
}

#[tokio::test]
async fn after_its_token_has_expired_the_certificate_speaks_alone() -> testkit::Result {
    let scene = scene().await?;
    let (mut shim, mut stream, first, token) = renew_after_the_token(&scene, shim(&scene)).await?;
    stream.next(&shim).await?;
    let call = scene.call(2, &shim).await?;
    assert_eq!(call.authorization, None);
    assert_eq!(call.peer.map(|peer| plain_serial(&peer.serial)), Some(first));
    // Only the stream that was there already profits: nobody new comes in with an expired token.
    assert_refused(&connect(&mut shim, &token).await?, &shim, "the token expired").await
}

#[tokio::test]
async fn an_expired_token_without_mutual_tls_ends_the_stream() -> testkit::Result {
    let scene = scene().await?;
    let (shim, mut stream, ..) = renew_after_the_token(&scene, shim(&scene).env("SDS_SHIM_CA_MTLS", "never")).await?;
    let closed = stream.expect_closed(&shim).await?;
    assert_eq!(closed.code(), Code::Unauthenticated);
    assert!(closed.to_string().contains("the token expired"), "{closed}");
    assert_eq!(scene.ca.calls().len(), 1);
    Ok(())
}

#[tokio::test]
async fn tokens_are_not_logged() -> testkit::Result {
    let scene = scene().await?;
    let mut shim = shim(&scene).start()?;
    let (good, bad) = (token("sleep"), TokenIssuer::new().mint(&TokenRequest::new("foo", "sleep")));
    Open::new(&connect(&mut shim, &good).await?, "default").next(&shim).await?;
    Open::new(&connect(&mut shim, &bad).await?, "default").expect_closed(&shim).await?;
    for part in [good, bad].iter().flat_map(|token| token.split('.').skip(1)) {
        assert!(!shim.log().contains(&part[..part.len() / 2]) && !shim.log().contains(&part[part.len() / 2..]));
    }
    Ok(())
}
