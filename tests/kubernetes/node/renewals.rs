//! What kubelet renews by itself takes it most of a quarter of an hour: PodCertificates, and tokens of ten minutes. It has a node
//! of its own, beside the one on which kubelets are killed, so that both are done sooner.

use std::time::Duration;

use serde_json::json;
use testkit::{Failure, node::possible};

use super::{
    certificate,
    life::{VALUES, play, short},
    logs,
    mesh::{Mesh, SLEEP},
    refresh,
};
use crate::tokens::claims;

/// A token of 600 s is renewed after 480 s, at kubelet's next look; this only bounds failures.
const TOKEN: Duration = Duration::from_secs(900);

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes node` builds"]
async fn kubelet_renews_what_it_has_mounted() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let mesh = Mesh::start(&VALUES).await?;
    play("certificate", certificates(&mesh)).await?;
    logs::hold_no_secrets(&mesh.node)?;
    mesh.stop().await
}

/// What kubelet does for PodCertificates, and while it takes its time for one of them, for a token.
async fn certificates(mesh: &Mesh) -> testkit::Result {
    certificate::prepare(mesh).await?;
    certificate::a_pod_certificate_is_served_and_a_refused_one_is_told(mesh).await?;
    refresh::a_pod_certificate_is_renewed_under_traffic(mesh).await?;
    if short() {
        eprintln!("NOT TESTED: what takes kubelet minutes, because NODE_SHORT is set");
        return refresh::a_refused_refresh_leaves_what_there_is(mesh).await;
    }
    mesh.upgrade(&json!({ "env": { "SDS_SHIM_LOG": "debug" } })).await?;
    mesh.deploy(SLEEP, "SDS_SHIM_LOG").await?;
    mesh.rolled_out(SLEEP).await?;
    let token = kubelet_renews_a_token_and_it_is_used(mesh);
    let bundle = refresh::a_changed_trust_bundle_reaches_envoy(mesh, &[true, false]);
    tokio::try_join!(token, refresh::kubelet_refreshes_a_pod_certificate(mesh), bundle)?;
    refresh::a_refused_refresh_leaves_what_there_is(mesh).await?;
    // The anchors are in a volume of their own, which goes on.
    refresh::a_changed_trust_bundle_reaches_envoy(mesh, &[true]).await
}

async fn kubelet_renews_a_token_and_it_is_used(mesh: &Mesh) -> testkit::Result {
    let before = mesh.token(SLEEP).await?;
    let issued = issued(&before)?;
    let look = async || Ok((mesh.token(SLEEP).await? != before).then_some(()));
    mesh.eventually("another token, of 600 s", TOKEN, look).await?;
    let renewed = sds_shim::clock::now() - issued;
    let known = mesh.status(SLEEP).await?["token_not_after"].clone();
    mesh.shim(SLEEP, &["renew"]).await?;
    let used = mesh.status(SLEEP).await?["token_not_after"].clone();
    println!("a token of 600 s was renewed after {renewed} s, and used: it ends {used}, the one before {known}");
    assert_ne!(used, known);
    Ok(())
}

/// When a token was issued, in Unix seconds.
fn issued(token: &str) -> Result<i64, Failure> {
    claims(token)?["iat"].as_i64().ok_or_else(|| Failure::new("the token has no iat"))
}
