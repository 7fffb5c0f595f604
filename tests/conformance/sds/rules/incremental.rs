use sds_shim_proto::grpc::health::v1::health_check_response::ServingStatus;
use testkit::{
    fixture::{delta_names, names},
    sds,
};
use tonic::Code;

use crate::subject::{Implementation, QUIET, Setup, Subject};

pub(super) async fn first_answer(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_, answer) = subject.ask_delta(&["default", "ROOTCA"]).await?;
    assert_eq!(delta_names(&answer)?, ["ROOTCA", "default"]);
    assert!(answer.resources.iter().all(|resource| !resource.version.is_empty()));
    Ok(())
}

/// A request of a client that already has `default`, in this version.
fn with_version(version: &str) -> sds_shim_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest {
    let mut request = sds::delta_request(&["default"], &[]);
    request.initial_resource_versions.insert("default".to_owned(), version.to_owned());
    request
}

pub(super) async fn known_versions_are_not_sent(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_, answer) = subject.ask_delta(&["default"]).await?;
    let mut stream = subject.client.delta();
    stream.send(with_version(&answer.resources[0].version));
    stream.expect_silence(QUIET).await
}

pub(super) async fn other_versions_are_sent(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut stream = subject.client.delta();
    stream.send(with_version("of another server"));
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

pub(super) async fn later_subscription(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask_delta(&["default"]).await?;
    stream.send(sds::delta_ack(&answer));
    let mut more = sds::delta_request(&["ROOTCA"], &[]);
    more.node = None;
    stream.send(more);
    assert_eq!(delta_names(&stream.recv().await?)?, ["ROOTCA"]);
    Ok(())
}

pub(super) async fn unsubscribed(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, answer) = subject.ask_delta(&["default", "ROOTCA"]).await?;
    stream.send(sds::delta_ack(&answer));
    stream.send(sds::delta_request(&[], &["default"]));
    subject.rotation().await?;
    stream.expect_silence(QUIET).await
}

pub(super) async fn rotation(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, answer) = subject.ask_delta(&["default", "ROOTCA"]).await?;
    stream.send(sds::delta_ack(&answer));
    assert_eq!(delta_names(&stream.recv().await?)?, ["default"]);
    Ok(())
}

pub(super) async fn nack(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (mut stream, answer) = subject.ask_delta(&["default"]).await?;
    stream.send(sds::delta_nack(&answer, "no such luck"));
    stream.expect_silence(QUIET * 2).await
}

pub(super) async fn fetch(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let answer = subject.client.fetch(sds::request(&["default", "ROOTCA"])).await;
    let answer = answer.map_err(|status| testkit::Failure::new(status.to_string()))?;
    assert_eq!(names(&answer)?, ["ROOTCA", "default"]);
    Ok(())
}

pub(super) async fn fetch_unknown(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let status = subject.client.fetch(sds::request(&["nobody"])).await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    Ok(())
}

pub(super) async fn health(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    subject.ask(&["default"]).await?;
    let health = subject.client.check_health("").await;
    assert_eq!(health.map_err(|status| status.to_string()), Ok(ServingStatus::Serving));
    Ok(())
}
