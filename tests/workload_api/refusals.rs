//! Codes by which clients come again: `UNAVAILABLE` with the reason, and `INVALID_ARGUMENT`, after which they never do, for
//! a missing header alone.

use std::time::Duration;

use testkit::{
    OrFail, PATIENCE,
    development_ca::{Fault, Issued, Leaf, Pki, ProjectedVolume},
    fixture::{QUIET, Site},
    sds::{self, SdsClient},
    workload_api::WorkloadApi,
};
use tonic::Code;

use crate::scene::{serve, socket, with_api};

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

#[tokio::test]
async fn before_the_first_certificate_the_reason_is_returned() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(down()));
    let shim = with_api(&site);
    let pod = site.serve_with(shim).await?;
    let api = WorkloadApi::wait_for(&socket(&pod.site)).await?;
    pod.shim.wait_for_log("down for the test").await?;
    let bundles = match api.bundles().await {
        Ok(mut bundles) => bundles.refusal().await?,
        Err(status) => status,
    };
    for refused in [api.refusal().await?, bundles] {
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains("default is not available yet"), "{refused}");
        assert!(refused.message().contains("down for the test"), "{refused}");
    }
    pod.site.ca.set_fault(None);
    api.svid().await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_outlives_the_end_of_the_certificate_and_has_the_next() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_ttl(Some(Duration::from_secs(4)));
    let shim = with_api(&site);
    let pod = site.serve_with(shim).await?;
    let api = WorkloadApi::wait_for(&socket(&pod.site)).await?;
    let (first, mut updates) = api.svid().await?;
    pod.site.ca.set_fault(Some(down()));
    // One may have been on its way.
    let told = pod.shim.until("the end of the certificate", || pod.shim.log().contains("expired").then_some(()));
    told.await?;
    let refused = api.refusal().await?;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("default expired at"), "{refused}");
    pod.site.ca.set_ttl(None);
    pod.site.ca.set_fault(None);
    let next = updates.svid().await?;
    assert_ne!(next.serial(), first.serial());
    Ok(())
}

#[tokio::test]
async fn without_the_security_header_nothing_is_answered() -> testkit::Result {
    let (_pod, api) = serve(|shim| shim).await?;
    let (_, _) = api.svid().await?;
    for header in [None, Some(("workload.spiffe.io", "false")), Some(("x-workload.spiffe.io", "true"))] {
        let api = api.clone().with_header(header);
        let jwt = api.jwt().await?;
        for refused in [api.refusal().await?, jwt] {
            assert_eq!(refused.code(), Code::InvalidArgument, "{header:?}: {refused}");
            assert!(refused.message().starts_with("security header missing from request"), "{refused}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn unimplemented_methods_name_the_alternative() -> testkit::Result {
    let (pod, api) = serve(|shim| shim).await?;
    let refused = api.jwt().await?;
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    assert!(refused.message().contains("projected service-account token"), "{refused}");
    // Neither socket has the services of the other.
    let other = SdsClient::connect(&socket(&pod.site)).await.or_fail("connect")?;
    let refused = other.fetch(sds::request(&["default"])).await.err().map(|status| status.code());
    assert_eq!(refused, Some(Code::Unimplemented));
    let other = WorkloadApi::connect(pod.shim.socket()).await.or_fail("connect")?;
    assert_eq!(other.refusal().await?.code(), Code::Unimplemented);
    Ok(())
}

/// A certificate that is nobody's, as SPIFFE has it: Envoy is served all the same.
#[tokio::test]
async fn a_mounted_certificate_without_a_spiffe_id_is_reported() -> testkit::Result {
    let site = Site::new().await?;
    let pki = Pki::new("mounted");
    let leaf =
        Leaf { uri: Vec::new(), dns: vec!["a.example".to_owned()], ..Leaf::workload("spiffe://a/b", 4 * PATIENCE) };
    let Issued { chain_pem, key_pem } = pki.issue(&leaf);
    let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &pki.root_pem())];
    let directory = site.workload.path().join("etc/certs");
    let _volume = ProjectedVolume::create(&directory, &files).or_fail("mount it")?;
    let shim = with_api(&site).env("FILE_MOUNTED_CERTS", "true").env("SDS_SHIM_SOURCE", "files");
    let pod = site.serve_with(shim).await?;
    pod.ask(&["default"]).await?;
    let api = WorkloadApi::wait_for(&socket(&pod.site)).await?;
    let refused = api.refusal().await?;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("carries no SPIFFE ID"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn health_is_served_on_the_same_socket() -> testkit::Result {
    use sds_shim_proto::grpc::health::v1::health_check_response::ServingStatus;
    let (pod, api) = serve(|shim| shim).await?;
    api.svid().await?;
    let other = SdsClient::connect(&socket(&pod.site)).await.or_fail("connect")?;
    for service in ["", "SpiffeWorkloadAPI"] {
        assert_eq!(other.check_health(service).await.or_fail("ask for the health")?, ServingStatus::Serving);
    }
    let mut watch = other.watch_health("SpiffeWorkloadAPI").await?;
    assert_eq!(watch.next().await?, ServingStatus::Serving);
    tokio::time::timeout(QUIET, watch.next()).await.err().ok_or_else(|| testkit::Failure::new("it changes"))?;
    Ok(())
}
