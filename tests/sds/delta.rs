//! The rules of `DeltaSecrets`, one by one, over the real socket.

use std::{fs, time::Duration};

use sds_shim_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Fault},
    fixture::{Pod, QUIET, Site, TOO_MUCH, delta_names},
    sds,
};
use tonic::Code;

fn version(answer: &DeltaDiscoveryResponse, name: &str) -> String {
    let found = answer.resources.iter().find(|resource| resource.name == name);
    found.map(|resource| resource.version.clone()).unwrap_or_default()
}

fn serial(answer: &DeltaDiscoveryResponse) -> Result<String, Failure> {
    let found = sds::delta_secrets(answer)?.into_iter().find(|secret| secret.name == "default");
    found.ok_or_else(|| Failure::new("the answer has no default"))?.serial()
}

/// The first request after a reconnect of a client that holds `held`.
fn reconnect(names: &[&str], held: &[(&str, String)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), version.clone()));
    DeltaDiscoveryRequest { initial_resource_versions: held.collect(), ..sds::delta_request(names, &[]) }
}

#[tokio::test]
async fn the_first_request_is_answered_whatever_nonce_it_carries() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, held) = pod.ask_delta(&["default"]).await?;
    for nonce in ["from-another-server", &held.nonce] {
        let mut stream = pod.client.delta();
        stream
            .send(DeltaDiscoveryRequest { response_nonce: nonce.to_owned(), ..sds::delta_request(&["default"], &[]) });
        assert_eq!(version(&stream.recv().await?, "default"), version(&held, "default"));
    }
    Ok(())
}

#[tokio::test]
async fn each_resource_has_its_own_version_which_is_that_of_the_other_rpc_too() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, answer) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    assert_eq!(delta_names(&answer)?, ["ROOTCA", "default"]);
    assert_eq!(answer.type_url, sds_shim_proto::SECRET_TYPE_URL);
    assert!(!answer.system_version_info.is_empty());
    assert!(answer.removed_resources.is_empty());
    for name in ["default", "ROOTCA"] {
        let (_, alone) = pod.ask(&[name]).await?;
        assert_eq!(version(&answer, name), alone.version_info);
    }
    assert_ne!(version(&answer, "default"), version(&answer, "ROOTCA"));
    Ok(())
}

#[tokio::test]
async fn the_secrets_are_those_of_the_other_rpc() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, answer) = pod.ask(&["default", "ROOTCA"]).await?;
    let (_, delta) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    let by_name = |mut secrets: Vec<sds::Secret>| {
        secrets.sort_by(|one, two| one.name.cmp(&two.name));
        secrets
    };
    assert!(by_name(sds::secrets(&answer)?) == by_name(sds::delta_secrets(&delta)?));
    Ok(())
}

#[tokio::test]
async fn streams_stay_open_without_a_token_and_are_answered_once_there_is_one() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let mut stream = pod.client.delta();
    stream.send(sds::delta_request(&["default"], &[]));
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    stream.expect_silence(QUIET).await?;
    pod.site.refresh_token()?;
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn a_restart_while_the_ca_fails_removes_nothing_from_clients() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "out of order".to_owned())));
    let pod = site.serve().await?;
    let mut stream = pod.client.delta();
    stream.send(reconnect(&["default"], &[("default", "from before the restart".to_owned())]));
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    stream.expect_silence(QUIET).await?;
    pod.site.ca.set_fault(None);
    let answer = stream.recv().await?;
    assert_eq!(delta_names(&answer)?, ["default"]);
    assert!(answer.removed_resources.is_empty());
    Ok(())
}

#[tokio::test]
async fn after_a_reconnect_only_what_changed_is_sent() -> testkit::Result {
    let mut pod = Pod::new().await?;
    let (stream, held) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    drop(stream);
    let versions = [("default", version(&held, "default")), ("ROOTCA", version(&held, "ROOTCA"))];
    let mut unchanged = pod.client.delta();
    unchanged.send(reconnect(&["default", "ROOTCA"], &versions));
    unchanged.expect_silence(QUIET).await?;
    let status = pod.shim.admin("/status").await?.text();
    let status: serde_json::Value = serde_json::from_str(&status).or_fail("read the status")?;
    for resource in status["sds"]["streams"][0]["resources"].as_array().expect("what the stream wants") {
        assert_eq!(resource["state"], "accepted", "nothing is sent, and yet nobody waits: {status}");
    }
    pod.rotate()?;
    assert_eq!(delta_names(&unchanged.recv().await?)?, ["default"]);
    let mut changed = pod.client.delta();
    changed.send(reconnect(&["default", "ROOTCA"], &versions));
    assert_eq!(delta_names(&changed.recv().await?)?, ["default"]);
    changed.expect_silence(QUIET).await
}

#[tokio::test]
async fn a_name_subscribed_again_is_sent_again() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, first) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    stream.send(sds::delta_ack(&first));
    stream.send(sds::delta_request(&["ROOTCA"], &[]));
    let again = stream.recv().await?;
    assert_eq!(delta_names(&again)?, ["ROOTCA"]);
    assert_eq!(version(&again, "ROOTCA"), version(&first, "ROOTCA"));
    assert_ne!(again.nonce, first.nonce);
    Ok(())
}

#[tokio::test]
async fn names_are_added_one_by_one() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, first) = pod.ask_delta(&["ROOTCA"]).await?;
    let add = sds::delta_request(&["default"], &[]);
    stream.send(DeltaDiscoveryRequest { response_nonce: first.nonce, ..add });
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    pod.rotate()?;
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn an_unsubscribed_name_is_neither_sent_nor_removed() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, _) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    stream.send(sds::delta_request(&[], &["default", "never-asked-for"]));
    stream.expect_silence(QUIET).await?;
    pod.rotate_and_see().await?;
    stream.expect_silence(QUIET).await?;
    stream.send(sds::delta_request(&["default"], &[]));
    let back = stream.recv().await?;
    assert_eq!(delta_names(&back)?, ["default"]);
    assert!(back.removed_resources.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_ack_is_not_answered() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask_delta(&["default"]).await?;
    stream.send(sds::delta_ack(&answer));
    stream.send(sds::delta_ack(&answer));
    // Answers come in the order of the requests: one to the ACKs would come before this one's.
    stream.send(sds::delta_request(&["ROOTCA"], &[]));
    assert_eq!(delta_names(&stream.recv().await?)?, ["ROOTCA"]);
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn after_a_nack_nothing_is_sent_until_the_content_changes() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, refused) = pod.ask_delta(&["default", "ROOTCA"]).await?;
    stream.send(sds::delta_nack(&refused, &format!("no such luck {}", "QUJDRA/".repeat(20))));
    let line = pod.shim.wait_for_log("no such luck").await?;
    assert!(line.contains("[redacted]") && !line.contains("QUJD"), "{line}");
    stream.expect_silence(QUIET).await?;
    pod.rotate()?;
    let changed = stream.recv().await?;
    assert_eq!(delta_names(&changed)?, ["default"]);
    assert_ne!(serial(&changed)?, serial(&refused)?);
    Ok(())
}

#[tokio::test]
async fn changed_names_are_honoured_inside_a_nack() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, answer) = pod.ask_delta(&["default"]).await?;
    let mut nack = sds::delta_nack(&answer, "only the roots, please");
    nack.resource_names_subscribe = vec!["ROOTCA".to_owned()];
    nack.resource_names_unsubscribe = vec!["default".to_owned()];
    stream.send(nack);
    assert_eq!(delta_names(&stream.recv().await?)?, ["ROOTCA"]);
    pod.rotate_and_see().await?;
    stream.expect_silence(QUIET).await
}

#[tokio::test]
async fn changed_names_and_the_verdict_are_honoured_with_the_nonce_of_an_earlier_response() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut stream, first) = pod.ask_delta(&["default"]).await?;
    pod.rotate()?;
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    let mut stale = sds::delta_nack(&first, "a stale refusal");
    stale.resource_names_subscribe = vec!["ROOTCA".to_owned()];
    stream.send(stale);
    assert_eq!(delta_names(&stream.recv().await?)?, ["ROOTCA"]);
    pod.shim.wait_for_log("a stale refusal").await?;
    // The answer to the later ones has passed it by: said again, it means nothing.
    stream.send(sds::delta_nack(&first, "an older refusal"));
    stream.expect_silence(QUIET).await?;
    assert!(!pod.shim.log().contains("an older refusal"));
    Ok(())
}

#[tokio::test]
async fn an_unknown_name_is_removed_at_once_as_often_as_it_is_asked_for() -> testkit::Result {
    // The CA does not issue: nothing else is there to be answered.
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "out of order".to_owned())));
    let pod = site.serve().await?;
    let mut stream = pod.client.delta();
    for name in ["nobody", "sds://gateway", "file-cert:no-key", "file-other:/etc/passwd", "nobody"] {
        stream.send(sds::delta_request(&[name, "default"], &[]));
        let answer = stream.recv_within(Duration::from_secs(1)).await?;
        assert_eq!((answer.resources.len(), &answer.removed_resources[..]), (0, &[name.to_owned()][..]));
        stream.send(sds::delta_ack(&answer));
    }
    stream.send(reconnect(&["nobody"], &[("nobody", "from another server".to_owned())]));
    assert_eq!(stream.recv().await?.removed_resources, ["nobody"]);
    // A name that may come is waited for, and so is what stands beside unknown ones.
    pod.site.ca.set_fault(None);
    let file = pod.site.workload.path().join("later.pem");
    let later = format!("file-root:{}", file.display());
    stream.send(sds::delta_request(&[&later], &["default"]));
    stream.expect_silence(QUIET).await?;
    fs::write(&file, pod.site.ca.root_pem()).or_fail("write the file")?;
    assert_eq!(delta_names(&stream.recv().await?)?, [later]);
    pod.shim.wait_for_log("unknown resource requested; answered as removed").await?;
    assert_eq!(pod.shim.log().count("resource=\"nobody\""), 1, "it is told once");
    Ok(())
}

/// By SNI, whoever connects to Envoy chooses them.
#[tokio::test]
async fn thousands_of_unknown_names_take_no_place() -> testkit::Result {
    let mut pod = Pod::new().await?;
    let mut stream = pod.client.delta();
    for number in 0..2000 {
        stream.send(sds::delta_request(&[&format!("{number}.example")], &[]));
        let answer = stream.recv().await?;
        assert_eq!(answer.removed_resources, [format!("{number}.example")]);
        stream.send(sds::delta_ack(&answer));
    }
    stream.send(sds::delta_request(&["ROOTCA", "default"], &[]));
    assert_eq!(delta_names(&stream.recv().await?)?, ["ROOTCA", "default"]);
    let status = pod.shim.admin("/status").await?.text();
    assert!(!status.contains(".example\""), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_wildcard_gets_nothing_and_its_stream_stays_open() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut mixed, answer) = pod.ask_delta(&["*", "default"]).await?;
    assert_eq!(delta_names(&answer)?, ["default"]);
    let mut streams = Vec::new();
    // An empty first request and `*` ask for everything in other xDS services: here that would be the key.
    for names in [&["*"][..], &[]] {
        let stream = pod.client.delta();
        stream.send(sds::delta_request(names, &[]));
        streams.push(stream);
    }
    pod.rotate_and_see().await?;
    for stream in &mut streams {
        stream.expect_silence(QUIET).await?;
    }
    let rotated = mixed.recv().await?;
    assert_eq!(delta_names(&rotated)?, ["default"]);
    assert!(rotated.removed_resources.is_empty(), "what was never there was not removed");
    Ok(())
}

#[tokio::test]
async fn another_type_url_is_an_invalid_argument_and_an_empty_one_is_not() -> testkit::Result {
    let pod = Pod::new().await?;
    for (type_url, expected) in [("type.googleapis.com/envoy.config.cluster.v3.Cluster", false), ("", true)] {
        let mut stream = pod.client.delta();
        let request = sds::delta_request(&["default"], &[]);
        stream.send(DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..request });
        match expected {
            true => assert_eq!(delta_names(&stream.recv().await?)?, ["default"]),
            false => assert_eq!(stream.expect_closed().await?.code(), Code::InvalidArgument),
        }
    }
    Ok(())
}

#[tokio::test]
async fn too_many_names_over_several_requests_are_left_out_and_hurt_nobody() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut healthy, _) = pod.ask_delta(&["default"]).await?;
    let mut greedy = pod.client.delta();
    for request in 0..200 {
        let names: Vec<_> = (0..20).map(|number| format!("{request}-{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        greedy.send(sds::delta_request(&names, &[]));
    }
    assert_eq!(greedy.recv().await?.removed_resources.len(), 20);
    let mut long = pod.client.delta();
    long.send(sds::delta_request(&[&"x".repeat(100_000)], &[]));
    assert!(TOO_MUCH.contains(&long.expect_closed().await?.code()));
    pod.rotate()?;
    assert_eq!(delta_names(&healthy.recv().await?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn a_rotation_is_pushed_to_every_open_stream() -> testkit::Result {
    let pod = Pod::new().await?;
    let (mut one, first) = pod.ask_delta(&["default"]).await?;
    let (mut two, _) = pod.ask_delta(&["ROOTCA", "default"]).await?;
    for _ in 0..3 {
        pod.rotate()?;
        let (one, two) = (one.recv().await?, two.recv().await?);
        assert_ne!(serial(&one)?, serial(&first)?);
        assert_eq!(serial(&one)?, serial(&two)?);
        assert_eq!(delta_names(&two)?, ["default"], "the roots have not changed");
    }
    Ok(())
}
