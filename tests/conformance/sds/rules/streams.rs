use std::time::Duration;

use testkit::{
    OrFail,
    fixture::{names, secret, serial},
    sds,
};
use tonic::Code;

use crate::subject::{Implementation, QUIET, Setup, Subject};

pub(super) async fn first_request_is_answered(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_, held) = subject.ask(&["default"]).await?;
    for (version, nonce) in [("1", "from-another-server"), (&held.version_info, &held.nonce)] {
        let mut first = sds::request(&["default"]);
        (first.version_info, first.response_nonce) = (version.to_owned(), nonce.to_owned());
        let mut stream = subject.client.stream();
        stream.send(first);
        assert_eq!(serial(&stream.recv().await?)?, serial(&held)?);
    }
    Ok(())
}

pub(super) async fn node_comes_once(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    let later = sds::ack(&answer, &["ROOTCA"]);
    assert_eq!(later.node, None);
    stream.send(later);
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    Ok(())
}

pub(super) async fn node_is_not_needed(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut request = sds::request(&["default"]);
    request.node = None;
    let mut stream = subject.client.stream();
    stream.send(request);
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

pub(super) async fn empty_type_url_is_taken(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut request = sds::request(&["default"]);
    request.type_url = String::new();
    let mut stream = subject.client.stream();
    stream.send(request);
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

pub(super) async fn other_type_url_is_refused(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut request = sds::request(&["default"]);
    request.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let mut stream = subject.client.stream();
    stream.send(request);
    assert_eq!(stream.expect_closed().await?.code(), Code::InvalidArgument);
    Ok(())
}

pub(super) async fn ack_is_not_answered(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    stream.expect_silence(QUIET).await
}

pub(super) async fn stale_nonce_is_ignored(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, first) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&first, &["default"]));
    stream.recv().await?;
    // The second is not acknowledged: what comes is about the first.
    stream.send(sds::ack(&first, &["ROOTCA"]));
    let next = stream.recv().await?;
    assert_eq!(names(&next)?, ["default"], "the change of names in a stale request was taken");
    Ok(())
}

pub(super) async fn nack_is_not_answered(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::nack(&answer, "", &["default"], "no such luck"));
    stream.expect_silence(QUIET * 4).await
}

pub(super) async fn nack_is_followed_by_the_next_content(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, refused) = subject.ask(&["default"]).await?;
    stream.send(sds::nack(&refused, "", &["default"], "no such luck"));
    assert_ne!(serial(&stream.recv().await?)?, serial(&refused)?);
    Ok(())
}

pub(super) async fn names_change_in_an_ack(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["ROOTCA"]));
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    Ok(())
}

pub(super) async fn names_change_in_a_nack(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::nack(&answer, "", &["ROOTCA"], "only the roots, please"));
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    Ok(())
}

pub(super) async fn no_name_stays_open(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&[]));
    stream.expect_silence(QUIET).await
}

pub(super) async fn unsubscribed_gets_nothing(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["ROOTCA"]));
    let roots = stream.recv().await?;
    stream.send(sds::ack(&roots, &["ROOTCA"]));
    subject.rotation().await?;
    stream.expect_silence(QUIET).await
}

pub(super) async fn several_names_are_answered(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask(&["default", "ROOTCA"]).await?;
    let mut got = names(&answer)?;
    if got.len() < 2 {
        stream.send(sds::ack(&answer, &["default", "ROOTCA"]));
        got.extend(names(&stream.recv().await?)?);
    }
    got.sort();
    assert_eq!(got, ["ROOTCA", "default"]);
    Ok(())
}

pub(super) async fn held_names_come_at_once(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    subject.ask(&["default"]).await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&["default", "file-root:/nonexistent/root.pem"]));
    let answer = stream.recv_within(Duration::from_secs(1)).await?;
    assert_eq!(names(&answer)?, ["default"]);
    Ok(())
}

pub(super) async fn unknown_name_gets_no_key(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    subject.ask(&["default"]).await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&["nobody"]));
    match stream.recv_within(QUIET * 4).await {
        Ok(answer) => assert!(sds::secrets(&answer)?.iter().all(|secret| secret.key_pem.is_empty()), "it got a key"),
        Err(silence_or_refusal) => drop(silence_or_refusal),
    }
    Ok(())
}

pub(super) async fn unknown_name_stays_open(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    subject.ask(&["default"]).await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&["nobody"]));
    stream.expect_silence(QUIET * 4).await
}

pub(super) async fn version_is_that_of_the_content(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_one, first) = subject.ask(&["default"]).await?;
    tokio::time::sleep(QUIET * 2).await;
    let (_two, second) = subject.ask(&["default"]).await?;
    assert_eq!(serial(&first)?, serial(&second)?);
    assert!(!first.version_info.is_empty());
    assert_eq!(first.version_info, second.version_info);
    Ok(())
}

pub(super) async fn nonces_differ(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, first) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&first, &["default"]));
    let second = stream.recv().await?;
    assert!(!first.nonce.is_empty() && first.nonce != second.nonce);
    Ok(())
}

pub(super) async fn type_urls_are_right(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_, answer) = subject.ask(&["default"]).await?;
    assert_eq!(answer.type_url, sds_shim_proto::SECRET_TYPE_URL);
    // Decoding looks at those of the resources.
    secret(&answer, "default").map(drop)
}

pub(super) async fn waits_for_the_first_certificate(of: Implementation) -> testkit::Result {
    let subject = Setup::without_token(of).await?.start().await?;
    for name in ["default", "ROOTCA"] {
        let mut stream = subject.client.stream();
        stream.send(sds::request(&[name]));
        // Longer than Istio's agent tries before it answers with an error.
        stream.expect_silence(Duration::from_secs(12)).await?;
    }
    Ok(())
}

pub(super) async fn is_answered_when_it_comes(of: Implementation) -> testkit::Result {
    let mut subject = Setup::without_token(of).await?.start().await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    stream.expect_silence(QUIET).await?;
    subject.site.refresh_token()?;
    let answer = stream.recv().await.or_fail("wait on the stream that was opened before")?;
    assert_eq!(names(&answer)?, ["default"]);
    Ok(())
}

pub(super) async fn rotation_is_pushed(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut one, first) = subject.ask(&["default"]).await?;
    let (mut two, again) = subject.ask(&["default"]).await?;
    one.send(sds::ack(&first, &["default"]));
    two.send(sds::ack(&again, &["default"]));
    let (one, two) = (one.recv().await?, two.recv().await?);
    assert_ne!(serial(&one)?, serial(&first)?);
    assert_eq!(serial(&one)?, serial(&two)?);
    Ok(())
}

pub(super) async fn unchanged_roots_are_not_sent(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut roots, answer) = subject.ask(&["ROOTCA"]).await?;
    roots.send(sds::ack(&answer, &["ROOTCA"]));
    subject.rotation().await?;
    roots.expect_silence(QUIET).await
}
