//! The chart, the tokens and the mesh against a real Kubernetes API server: `make test-kubernetes`.

use testkit::{Failure, kubernetes::Cluster};

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_control_plane_makes_accounts_and_tokens() -> Result<(), Failure> {
    let cluster = Cluster::start().await?;
    println!("the API server was ready after {:?}", cluster.started());
    cluster.kubectl(&["create", "namespace", "foo"]).await?;
    cluster.kubectl(&["wait", "--for=create", "-n", "foo", "sa/default", "configmap/kube-root-ca.crt"]).await?;
    let token = cluster.kubectl(&["create", "token", "-n", "foo", "default", "--audience=istio-ca"]).await?;
    assert_eq!(token.trim().split('.').count(), 3);
    cluster.stop().await
}
