//! The rules of `StreamSecrets`, one by one, over the real socket.

use testkit::{
    development_ca::{CaOptions, Fault},
    fixture::{Pod, QUIET, Site, TOO_MUCH, names, secret, serial},
    sds,
};
use tonic::Code;

#[tokio::test]
async fn the_first_request_is_answered_whatever_version_and_nonce_it_carries() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, held) = pod.ask(&["default"]).await?;
    for (version, nonce) in [("", ""), ("1", "from-another-server"), (&held.version_info, &held.nonce)] {
        let mut first = sds::request(&["default"]);
        (first.version_info, first.response_nonce) = (version.to_owned(), nonce.to_owned());
        let mut stream = pod.client.stream();
        stream.send(first);
        assert_eq!(stream.recv().await?.version_info, held.version_info);
    }
    Ok(())
}

#[tokio::test]
async fn the_first_request_is_answered_though_it_carries_an_error_of_an_earlier_stream() -> testkit::Result {
    let pod = Pod::new().await?;
    let (stream, held) = pod.ask(&["default"]).await?;
    drop(stream);
    let mut stream = pod.client.stream();
    stream.send(sds::nack(&held, "", &["default"], "from before the reconnect"));
    assert_eq!(stream.recv().await?.version_info, held.version_info);
    Ok(())
}

#[tokio::test]
async fn the_node_may_come_with_the_first_message_only_or_not_at_all() -> testkit::Result {
    let pod = Pod::new().await?;
    for node in [sds::request(&[]).node, None] {
        let mut stream = pod.client.stream();
        let mut first = sds::request(&["default"]);
        first.node = node;
        stream.send(first);
        let answer = stream.recv().await?;
        let later = sds::ack(&answer, &["default", "ROOTCA"]);
        assert_eq!(later.node, None);
        stream.send(later);
        assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    }
    Ok(())
}

#[tokio::test]
async fn streams_stay_open_without_a_token_and_are_answered_once_there_is_one() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let mut stream = pod.client.stream();
    stream.send(sds::request(&["default"]));
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    stream.expect_silence(QUIET).await?;
    pod.site.refresh_token()?;
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn streams_stay_open_while_the_ca_fails_and_are_answered_once_it_works() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::DropConnection));
    let pod = site.serve().await?;
    let mut stream = pod.client.stream();
    stream.send(sds::request(&["ROOTCA", "default"]));
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    stream.expect_silence(QUIET).await?;
    pod.site.ca.set_fault(None);
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA", "default"]);
    Ok(())
}

#[tokio::test]
async fn the_last_names_requested_before_the_first_certificate_are_answered() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let mut stream = pod.client.stream();
    stream.send(sds::request(&["default"]));
    stream.send(sds::request(&["ROOTCA"]));
    stream.expect_silence(QUIET).await?;
    pod.site.refresh_token()?;
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn a_stale_nonce_is_ignored_with_all_that_its_request_says() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, first) = pod.ask(&["default"]).await?;
    pod.rotate()?;
    let second = stream.recv().await?;
    assert_ne!(first.nonce, second.nonce);
    stream.send(sds::ack(&first, &["ROOTCA"]));
    stream.send(sds::nack(&first, "", &["ROOTCA"], "a stale refusal"));
    stream.send(sds::ack(&second, &["default"]));
    pod.rotate_and_see().await?;
    assert_eq!(names(&stream.recv().await?)?, ["default"], "neither answered nor taken as a change of names");
    assert!(!pod.shim.log().contains("a stale refusal"));
    Ok(())
}

#[tokio::test]
async fn an_ack_is_not_answered() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    stream.send(sds::ack(&answer, &["default"]));
    // Answers come in the order of the requests: one to the ACKs would come before this one's.
    stream.send(sds::ack(&answer, &["default", "ROOTCA"]));
    assert_eq!(names(&stream.recv().await?)?, ["ROOTCA"]);
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn after_a_nack_nothing_is_sent_until_the_content_changes() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, refused) = pod.ask(&["default"]).await?;
    stream.send(sds::nack(&refused, "", &["default"], "no such luck"));
    pod.shim.wait_for_log("no such luck").await?;
    stream.expect_silence(QUIET).await?;
    pod.rotate()?;
    let changed = stream.recv().await?;
    assert_ne!(changed.version_info, refused.version_info);
    assert_ne!(serial(&changed)?, serial(&refused)?);
    Ok(())
}

#[tokio::test]
async fn changed_names_are_honoured_inside_a_nack() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask(&["default"]).await?;
    stream.send(sds::nack(&answer, "", &["ROOTCA"], "only the roots, please"));
    let roots = stream.recv().await?;
    assert_eq!(names(&roots)?, ["ROOTCA"]);
    stream.send(sds::ack(&roots, &["ROOTCA"]));
    pod.rotate_and_see().await?;
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn a_nacks_text_is_logged_on_one_line_without_key_material() -> testkit::Result {
    let pod = Pod::new().await?;
    let (stream, answer) = pod.ask(&["default"]).await?;
    let key = secret(&answer, "default")?.key_pem;
    let reason = format!("cannot load\n2026-01-01 ERROR forged: line {key} nor {}", "QUJDRA/".repeat(20));
    stream.send(sds::nack(&answer, "", &["default"], &format!("{reason}{}", " much more".repeat(1000))));
    let line = pod.shim.wait_for_log("cannot load").await?;
    assert!(line.contains("default") && line.contains("WARN") && line.contains("[redacted]"), "{line}");
    assert!(line.contains("forged"), "a line break in the text makes no line in the log: {line}");
    assert!(line.len() < 1000, "{} bytes", line.len());
    let body: Vec<_> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!body.is_empty() && body.iter().all(|part| !pod.shim.log().contains(part)));
    assert!(!pod.shim.log().contains("QUJDRA/QUJDRA/"));
    Ok(())
}

#[tokio::test]
async fn a_name_left_out_is_unsubscribed() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask(&["default", "ROOTCA"]).await?;
    stream.send(sds::ack(&answer, &["ROOTCA"]));
    stream.expect_silence(QUIET).await?;
    pod.rotate_and_see().await?;
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn a_stream_without_any_name_stays_open_and_may_subscribe_again() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &[]));
    stream.expect_silence(QUIET).await?;
    pod.rotate_and_see().await?;
    stream.expect_silence(QUIET).await?;
    stream.send(sds::ack(&answer, &["default"]));
    assert_ne!(serial(&stream.recv().await?)?, serial(&answer)?);
    let mut stream = pod.client.stream();
    stream.send(sds::request(&[]));
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn of_several_names_the_held_ones_are_answered_at_once() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask(&["ROOTCA", "not-here", "default"]).await?;
    assert_eq!(names(&answer)?, ["ROOTCA", "default"]);
    stream.send(sds::ack(&answer, &["ROOTCA", "not-here", "default"]));
    pod.rotate()?;
    assert_eq!(names(&stream.recv().await?)?, ["default"], "the roots have not changed");
    Ok(())
}

#[tokio::test]
async fn an_unknown_name_gets_nothing_and_its_stream_stays_open() -> testkit::Result {
    let pod = Pod::new().await?;
    let unknown = ["nobody", "sds://gateway", "*", "", "Default", "default ", "kubernetes://credential"];
    let mut streams = Vec::new();
    for name in unknown {
        let stream = pod.client.stream();
        stream.send(sds::request(&[name]));
        streams.push(stream);
    }
    pod.rotate_and_see().await?;
    for stream in &mut streams {
        stream.expect_silence(QUIET / 5).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_name_is_warned_about_once_however_often_it_is_asked_for() -> testkit::Result {
    let mut pod = Pod::new().await?;
    for _ in 0..5 {
        let (_stream, answer) = pod.ask(&["nobody\nforged line", "default"]).await?;
        assert_eq!(names(&answer)?, ["default"]);
    }
    pod.shim.terminate().await?;
    assert_eq!(pod.shim.log().count("nobody"), 1);
    let line = pod.shim.wait_for_log("nobody").await?;
    assert!(line.contains("WARN") && line.contains("forged line"), "{line}");
    Ok(())
}

/// A name that nothing could be held of is unknown like any other: the stream and what else is on it stay.
#[tokio::test]
async fn names_that_are_too_long_or_too_many_do_not_end_the_stream() -> testkit::Result {
    let pod = Pod::new().await?;
    let long = "x".repeat(20_000);
    let many: Vec<_> = (0..100).map(|number| format!("unknown-{number}")).collect();
    for more in [vec![long.as_str()], many.iter().map(String::as_str).collect()] {
        let mut stream = pod.client.stream();
        let asked: Vec<_> = more.iter().copied().chain(["default"]).collect();
        stream.send(sds::request(&asked));
        assert_eq!(names(&stream.recv().await?)?, ["default"]);
        pod.rotate()?;
        assert_eq!(names(&stream.recv().await?)?, ["default"]);
    }
    let line = pod.shim.wait_for_log("the name has 20000 bytes; the limit is 8208; its stream stays open").await?;
    assert!(line.len() < 512, "{line}");
    pod.shim.wait_for_log("its stream already has 64 names, the limit; its stream stays open").await?;
    Ok(())
}

#[tokio::test]
async fn another_type_url_is_an_invalid_argument_and_an_empty_one_is_not() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let mut foreign = sds::request(&["default"]);
    foreign.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let mut stream = pod.client.stream();
    stream.send(foreign);
    assert_eq!(stream.expect_closed().await?.code(), Code::InvalidArgument);
    let mut empty = sds::request(&["default"]);
    empty.type_url = String::new();
    let mut stream = pod.client.stream();
    stream.send(empty);
    assert_eq!(stream.recv().await?.type_url, sds_shim_proto::SECRET_TYPE_URL);
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn too_much_in_one_request_ends_its_stream_and_no_other() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask(&["default"]).await?;
    let many: Vec<_> = (0..5000).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for names in [many, vec![&*"x".repeat(10_000_000)]] {
        let mut stream = pod.client.stream();
        stream.send(sds::request(&names));
        let code = stream.expect_closed().await?.code();
        assert!(TOO_MUCH.contains(&code), "{code:?}");
    }
    pod.rotate()?;
    assert_eq!(names(&healthy.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn one_content_has_one_version_on_every_stream_and_another_content_another() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut one, first) = pod.ask(&["default"]).await?;
    let (_two, same) = pod.ask(&["default"]).await?;
    assert_eq!(first.version_info, same.version_info);
    assert!(!first.version_info.is_empty());
    assert_ne!(first.nonce, same.nonce, "a nonce belongs to one response");
    let (_, roots) = pod.ask(&["ROOTCA"]).await?;
    pod.rotate()?;
    assert_ne!(one.recv().await?.version_info, first.version_info);
    let (_, after) = pod.ask(&["ROOTCA"]).await?;
    assert_eq!(roots.version_info, after.version_info, "the roots have not changed");
    Ok(())
}

#[tokio::test]
async fn a_rotation_is_pushed_to_every_open_stream() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut one, first) = pod.ask(&["default"]).await?;
    let (mut two, _) = pod.ask(&["ROOTCA", "default"]).await?;
    for rotations in 1..=3 {
        pod.rotate()?;
        let (one, two) = (one.recv().await?, two.recv().await?);
        assert_ne!(serial(&one)?, serial(&first)?);
        assert_eq!(serial(&one)?, serial(&two)?);
        assert_eq!(pod.site.ca.calls().len(), 1 + rotations, "streams cost no calls to the CA");
    }
    Ok(())
}

#[tokio::test]
async fn the_secrets_are_what_envoy_needs_and_no_more() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, answer) = pod.ask(&["default", "ROOTCA"]).await?;
    let workload = secret(&answer, "default")?;
    assert!(workload.key_fits_leaf()?);
    assert!(workload.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "PKCS#8");
    assert_eq!(workload.spiffe_ids()?, [pod.site.workload.spiffe_id()]);
    let intermediate = openssl_pem(&pod.site.pki.intermediate_pem());
    let chain: Vec<_> = workload.chain()?.iter().filter_map(|x509| x509.to_der().ok()).collect();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    assert_eq!(chain[1], intermediate);
    assert_eq!((workload.trusted_ca_pem.as_str(), workload.crl_pem.as_str()), ("", ""));
    let roots = secret(&answer, "ROOTCA")?;
    let anchors: Vec<_> = roots.trust_anchors()?.iter().filter_map(|x509| x509.to_der().ok()).collect();
    assert_eq!(anchors, [openssl_pem(&pod.site.pki.root_pem())]);
    assert_eq!((roots.chain_pem.as_str(), roots.key_pem.as_str()), ("", ""));
    Ok(())
}

fn openssl_pem(pem: &str) -> Vec<u8> {
    openssl::x509::X509::from_pem(pem.as_bytes()).and_then(|x509| x509.to_der()).expect("a certificate in PEM")
}

#[tokio::test]
async fn every_rotation_has_a_fresh_key() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, first) = pod.ask(&["default"]).await?;
    pod.rotate()?;
    let (old, new) = (secret(&first, "default")?, secret(&stream.recv().await?, "default")?);
    assert!(new.key_fits_leaf()?);
    assert_ne!(old.key_pem, new.key_pem);
    Ok(())
}
