//! The configurations that the kit writes are what Envoy takes.

use std::net::SocketAddr;

use testkit::{
    Failure,
    envoy::{Bootstrap, Envoy, SdsTransport, Upstream},
    scratch::Scratch,
};

fn bootstrap(transport: SdsTransport) -> serde_json::Value {
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    let spiffe_id = testkit::workload::spiffe_id("foo", "httpbin");
    let upstream = Upstream { host: "httpbin.foo".to_owned(), address, spiffe_id: spiffe_id.clone() };
    Bootstrap::new("both", transport).inbound(address, &[spiffe_id]).outbound(&[upstream]).build()
}

/// Without an SDS server, Envoy must be waiting for exactly our two secrets, and not be ready.
async fn waits_for_its_secrets(transport: SdsTransport) -> Result<(), Failure> {
    let scratch = Scratch::new("tests")?;
    let mut envoy = Envoy::start("Envoy", scratch.path(), &bootstrap(transport))?;
    let admin = envoy.admin().clone();
    let waiting = || async { Ok(admin.secrets().await?.warming.iter().eq(["ROOTCA", "default"])) };
    envoy.wait_until("two warming secrets", waiting).await?;
    assert!(!admin.is_ready().await);
    assert!(admin.secrets().await?.active.is_empty());
    assert!(envoy.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn envoy_grpc() -> Result<(), Failure> {
    waits_for_its_secrets(SdsTransport::EnvoyGrpc).await
}

#[tokio::test]
async fn envoy_delta_grpc() -> Result<(), Failure> {
    waits_for_its_secrets(SdsTransport::EnvoyDeltaGrpc).await
}

#[tokio::test]
async fn google_grpc() -> Result<(), Failure> {
    let token_file = "./token".to_owned();
    waits_for_its_secrets(SdsTransport::GoogleGrpc { token_file }).await
}
