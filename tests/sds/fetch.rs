//! The rules of `FetchSecrets`, one by one, over the real socket.

use sds_shim_proto::envoy::service::discovery::v3::DiscoveryRequest;
use testkit::{
    Failure, OrFail, PATIENCE,
    development_ca::CaOptions,
    fixture::{Pod, QUIET, Site, TOO_MUCH, names, secret, serial},
    sds,
};
use tokio::time::timeout;
use tonic::{Code, Status};

async fn refusal(pod: &Pod, request: DiscoveryRequest) -> Result<Status, Failure> {
    match pod.client.fetch(request).await {
        Ok(answer) => Err(Failure::new(format!("{:?} was answered", names(&answer)?))),
        Err(refused) => Ok(refused),
    }
}

#[tokio::test]
async fn the_held_secrets_are_answered_whatever_version_and_nonce_the_request_carries() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, held) = pod.ask(&["default"]).await?;
    for (version, nonce) in [("", ""), ("1", "from-another-server"), (&held.version_info, &held.nonce)] {
        let mut request = sds::request(&["default"]);
        (request.version_info, request.response_nonce) = (version.to_owned(), nonce.to_owned());
        let answer = pod.client.fetch(request).await.or_fail("fetch")?;
        assert_eq!(answer.version_info, held.version_info);
        assert_eq!(serial(&answer)?, serial(&held)?);
    }
    let both = pod.client.fetch(sds::request(&["default", "ROOTCA"])).await.or_fail("fetch both")?;
    assert_eq!(names(&both)?, ["ROOTCA", "default"]);
    assert!(secret(&both, "default")?.key_fits_leaf()?);
    Ok(())
}

#[tokio::test]
async fn each_call_sees_the_present_certificate() -> testkit::Result {
    let pod = Pod::new().await?;
    let before = pod.client.fetch(sds::request(&["default"])).await.or_fail("fetch")?;
    let rotated = pod.rotate_and_see().await?;
    let after = pod.client.fetch(sds::request(&["default"])).await.or_fail("fetch again")?;
    assert_ne!(serial(&after)?, serial(&before)?);
    assert_eq!(serial(&after)?, serial(&rotated)?);
    assert_eq!(pod.site.ca.calls().len(), 2, "fetching costs no calls to the CA");
    Ok(())
}

#[tokio::test]
async fn a_call_waits_for_the_first_certificate() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let client = pod.client.clone();
    let mut call = tokio::spawn(async move { client.fetch(sds::request(&["default"])).await });
    pod.shim.wait_for_log("cannot obtain a certificate").await?;
    assert!(timeout(QUIET, &mut call).await.is_err(), "the call waits");
    pod.site.refresh_token()?;
    let answer = timeout(PATIENCE, call).await.or_fail("wait for the answer")?;
    assert_eq!(names(&answer.or_fail("join")?.or_fail("fetch")?)?, ["default"]);
    Ok(())
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_waits_disturbs_nobody() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    let mut stream = pod.client.stream();
    stream.send(sds::request(&["default"]));
    assert!(timeout(QUIET, pod.client.fetch(sds::request(&["default"]))).await.is_err());
    pod.site.refresh_token()?;
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    assert!(pod.client.fetch(sds::request(&["default"])).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn only_unknown_names_are_not_found_also_before_the_first_certificate() -> testkit::Result {
    let mut pod = Site::without_token(CaOptions::default()).await?.serve().await?;
    for _ in 0..2 {
        for unknown in [&["nobody"][..], &["*"], &["sds://gateway", "nobody"]] {
            let refused = refusal(&pod, sds::request(unknown)).await?;
            assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        }
        pod.site.refresh_token()?;
        pod.ask(&["default"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_name_is_answered_and_not_logged() -> testkit::Result {
    let pod = Pod::new().await?;
    pod.ask(&["default"]).await?;
    let refused = refusal(&pod, sds::request(&["nobody"])).await?;
    assert!(
        refused.message().ends_with(
            ", file-root:system, file-token:FILE below SDS_SHIM_TOKEN_DIRECTORIES, and those of SDS_SHIM_NAMES"
        ),
        "{refused:?}"
    );
    let refused = refusal(&pod, sds::request(&[])).await?;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("the request names no resource; available: default, "), "{refused:?}");
    assert_eq!(pod.shim.log().count("nobody"), 0);
    // A stream that asks for the same name is told of: nobody else would say why it is silent.
    let stream = pod.client.stream();
    stream.send(sds::request(&["nobody"]));
    pod.shim.wait_for_log("unknown resource requested").await?;
    Ok(())
}

#[tokio::test]
async fn of_several_names_the_held_ones_are_answered() -> testkit::Result {
    let pod = Pod::new().await?;
    pod.ask(&["default"]).await?;
    let answer = pod.client.fetch(sds::request(&["nobody", "ROOTCA"])).await.or_fail("fetch")?;
    assert_eq!(names(&answer)?, ["ROOTCA"]);
    Ok(())
}

#[tokio::test]
async fn another_type_url_is_an_invalid_argument_and_an_empty_one_is_not() -> testkit::Result {
    let pod = Pod::new().await?;
    let mut request = sds::request(&["default"]);
    request.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let refused = refusal(&pod, request.clone()).await?;
    assert_eq!(refused.code(), Code::InvalidArgument);
    request.type_url.clear();
    assert!(pod.client.fetch(request).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn too_much_in_one_request_is_refused() -> testkit::Result {
    let pod = Pod::new().await?;
    let many: Vec<_> = (0..5000).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for (names, expected) in
        [(&many[..], Code::OutOfRange), (&many[..100], Code::NotFound), (&[&*"x".repeat(30_000)], Code::NotFound)]
    {
        let refused = refusal(&pod, sds::request(names)).await?;
        assert_eq!(refused.code(), expected);
    }
    let huge = "x".repeat(10_000_000);
    assert!(TOO_MUCH.contains(&refusal(&pod, sds::request(&[&huge])).await?.code()));
    assert!(pod.client.fetch(sds::request(&["default"])).await.is_ok());
    Ok(())
}
