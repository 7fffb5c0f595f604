use std::time::Duration;

use openssl::x509::X509Req;
use serde_json::json;
use testkit::{
    Failure, OrFail, PATIENCE,
    development_ca::{Call, Fault, TokenRequest},
    fixture::tokens,
    sds,
};
use tokio::time::timeout;

use crate::subject::{Implementation, QUIET, Setup, Subject};

/// The first call of a subject that has a certificate.
async fn first_call(setup: Setup) -> Result<(Call, Subject), Failure> {
    let subject = setup.start().await?;
    subject.ask(&["default"]).await?;
    let call = subject.site.ca.calls().into_iter().next().ok_or_else(|| Failure::new("no call"))?;
    Ok((call, subject))
}

fn csr(call: &Call) -> Result<X509Req, Failure> {
    X509Req::from_pem(call.csr.as_bytes()).or_fail("read the CSR")
}

pub(super) async fn csr_has_one_san(of: Implementation) -> testkit::Result {
    let (call, subject) = first_call(Setup::new(of).await?).await?;
    let extensions = csr(&call)?.extensions().or_fail("read the CSR's extensions")?;
    assert_eq!(extensions.len(), 1, "extensions beside the SAN");
    assert_eq!(call.uris().or_fail("read the CSR's SAN")?, [subject.site.workload.spiffe_id()]);
    Ok(())
}

pub(super) async fn csr_has_no_subject(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?).await?;
    let csr = csr(&call)?;
    // Istio's agent writes an organization without characters.
    let told = csr.subject_name().entries().any(|entry| !entry.data().as_slice().is_empty());
    assert!(!told, "{:?}", csr.subject_name());
    Ok(())
}

pub(super) async fn token_is_a_bearer(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?).await?;
    let authorization = call.authorization.ok_or_else(|| Failure::new("no authorization"))?;
    assert_eq!(authorization.scheme, "Bearer");
    assert_eq!(authorization.subject.as_deref(), Some("system:serviceaccount:foo:sleep"));
    Ok(())
}

pub(super) async fn cluster_id(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?.env("ISTIO_META_CLUSTER_ID", "west")).await?;
    assert_eq!(call.header("clusterid"), Some("west"));
    Ok(())
}

pub(super) async fn headers(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?.env("CA_HEADER_X_TENANT", "blue")).await?;
    assert_eq!(call.header("x_tenant"), Some("blue"));
    Ok(())
}

pub(super) async fn cert_signer(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?.env("ISTIO_META_CERT_SIGNER", "one")).await?;
    assert!(call.metadata.iter().any(|(name, value)| name == "CertSigner" && value == "one"), "{:?}", call.metadata);
    Ok(())
}

pub(super) async fn lifetime(of: Implementation) -> testkit::Result {
    let (call, _) = first_call(Setup::new(of).await?.env("SECRET_TTL", "1h30m")).await?;
    assert_eq!(call.validity_duration, 5400);
    Ok(())
}

pub(super) async fn fresh_token(of: Implementation) -> testkit::Result {
    let mut subject = Setup::new(of).await?.rotating().start().await?;
    let (stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    let other = tokens().mint(&TokenRequest::new("bar", "sleep"));
    subject.site.workload.write_token(&other).or_fail("write the token")?;
    let changed = async {
        loop {
            let mut subjects = subject.site.ca.calls().into_iter().filter_map(|call| call.authorization?.subject);
            if subjects.next_back().as_deref() == Some("system:serviceaccount:bar:sleep") {
                return;
            }
            subject.site.ca.wait_for_calls(subject.site.ca.calls().len() + 1).await;
        }
    };
    timeout(PATIENCE, changed).await.or_fail("wait for a call with the new token")
}

pub(super) async fn own_certificate(of: Implementation) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, answer) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    stream.recv().await?;
    let calls = subject.site.ca.calls();
    assert!(calls[0].peer.is_none());
    let peer = calls[1].peer.as_ref().and_then(|peer| peer.spiffe_id.clone());
    assert_eq!(peer, Some(subject.site.workload.spiffe_id()));
    Ok(())
}

pub(super) async fn expired_token(of: Implementation) -> testkit::Result {
    let mut setup = Setup::without_token(of).await?;
    let token = tokens().mint(&TokenRequest { lifetime: -60, ..TokenRequest::new("foo", "sleep") });
    setup.site.workload.write_token(&token).or_fail("write the token")?;
    let subject = setup.start().await?;
    let stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    tokio::time::sleep(QUIET * 4).await;
    assert_eq!(subject.site.ca.calls().len(), 0);
    Ok(())
}

pub(super) async fn missing_token(of: Implementation) -> testkit::Result {
    let subject = Setup::without_token(of).await?.start().await?;
    let stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    tokio::time::sleep(QUIET * 4).await;
    assert_eq!(subject.site.ca.calls().len(), 0);
    Ok(())
}

pub(super) async fn hanging_call(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?.env("SDS_SHIM_CA_ANSWER_TIMEOUT", "5s");
    setup.site.ca.push_fault(Fault::Hang);
    let subject = setup.start().await?;
    let stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    timeout(PATIENCE, subject.site.ca.wait_for_calls(2)).await.or_fail("wait for another call")
}

pub(super) async fn root_file(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    let good = setup.site.ca.root_pem();
    let other = testkit::development_ca::Pki::new("somebody else's").root_pem();
    setup.site.workload.write_root(&other).or_fail("write the root")?;
    let subject = setup.start().await?;
    let stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    timeout(PATIENCE, subject.site.ca.wait_for_connections(1)).await.or_fail("wait for a handshake")?;
    subject.site.workload.write_root(&good).or_fail("write the root")?;
    timeout(PATIENCE, subject.site.ca.wait_for_calls(1)).await.or_fail("wait for a call")
}

pub(super) async fn discovery_address(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    let address = format!("localhost:{}", setup.site.ca.address().port());
    let setup = setup.env("CA_ADDR", "").proxy_config("discoveryAddress", json!(address));
    first_call(setup).await.map(drop)
}

pub(super) async fn reconnects(of: Implementation) -> testkit::Result {
    let (_, subject) = first_call(Setup::new(of).await?).await?;
    for _ in 0..20 {
        let client = subject.reconnect().await?;
        let mut stream = client.stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await?;
    }
    assert_eq!(subject.site.ca.calls().len(), 1);
    Ok(())
}

pub(super) async fn many_streams(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut streams: Vec<_> = (0..20).map(|_| subject.client.stream()).collect();
    streams.iter().for_each(|stream| stream.send(sds::request(&["default"])));
    for stream in &mut streams {
        stream.recv_within(Duration::from_secs(20)).await?;
    }
    assert_eq!(subject.site.ca.calls().len(), 1);
    Ok(())
}
