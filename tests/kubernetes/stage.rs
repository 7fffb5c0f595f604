//! A cluster with the chart, its development CA and its samples.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Kubernetes, Method, Pki, state},
    kubernetes::Cluster,
    scene::World,
    scratch::Scratch,
};

pub(crate) const CHART: &str = "packaging/helm/sds-shim";
pub(crate) const CA: &str = "sds-shim-development-ca";
/// The volume of injected pods that the token is in.
pub(crate) const VOLUME: &str = "sds-shim-token";

/// File with the token of the CA's account.
pub(crate) const CA_TOKEN: &str = "ca-token";

/// The API server, the chart with its development CA, and its samples in two namespaces.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) scratch: Scratch,
    /// By `SERVICE_ACCOUNT.NAMESPACE`.
    pub(crate) pods: BTreeMap<String, Value>,
}

impl Stage {
    pub(crate) async fn set() -> Result<Self, Failure> {
        let cluster = Cluster::start().await?;
        println!("the API server was ready after {:.1?}", cluster.started());
        for namespace in ["foo", "bar"] {
            cluster.restricted_namespace(namespace).await?;
        }
        let values = format!("{CHART}/samples/values.yaml");
        cluster.helm(&["install", "sds-shim", CHART, "-n", "sds-shim", "--create-namespace", "-f", &values]).await?;
        let mut pods = BTreeMap::new();
        for namespace in ["foo", "bar"] {
            cluster.injects(namespace, &simple_pod("default")).await?;
            for account in ["sleep", "httpbin"] {
                let sample = format!("{CHART}/samples/{account}.yaml");
                cluster.kubectl(&["apply", "-n", namespace, "-f", &sample]).await?;
                let pod = cluster.pod(namespace, &format!("app={account}")).await?;
                pods.insert(format!("{account}.{namespace}"), pod);
            }
        }
        Ok(Self { cluster, scratch: Scratch::new("tests")?, pods })
    }

    /// The chart's CA, and a token of the cluster for each of the pods.
    pub(crate) async fn world(&self, method: Method) -> Result<World, Failure> {
        let mut world = world(&self.cluster, self.scratch.path(), method).await?;
        for (name, pod) in &self.pods {
            world.given.insert(name.clone(), self.cluster.token(pod, VOLUME).await?);
        }
        Ok(world)
    }
}

/// The development CA with the authority of the chart's Secret, asking the API server as the chart's account does.
pub(crate) async fn world(cluster: &Cluster, directory: &Path, method: Method) -> Result<World, Failure> {
    let (pki, _): (Pki, _) = state::open_or_create(&authority(cluster, directory).await?).or_fail("read the CA")?;
    let token_file = directory.join(CA_TOKEN);
    let token = cluster.request_token("sds-shim", CA, &json!({ "expirationSeconds": 3600 })).await?;
    fs::write(&token_file, token).or_fail("write the CA's token")?;
    let kubernetes = Kubernetes { method, api_server: cluster.url(), ca_file: cluster.root_file(), token_file };
    World::with(pki, CaOptions { kubernetes: Some(kubernetes), ..CaOptions::default() }).await
}

/// A directory with the files of the chart's Secret, as they are mounted.
pub(crate) async fn authority(cluster: &Cluster, directory: &Path) -> Result<PathBuf, Failure> {
    let authority = directory.join("authority");
    let secret = cluster.get(&["secret", CA, "-n", "sds-shim"]).await?;
    let files = secret["data"].as_object().ok_or_else(|| Failure::new("the CA's Secret is empty"))?;
    fs::create_dir_all(&authority).or_fail("make a directory for the CA")?;
    for (name, content) in files {
        let content = openssl::base64::decode_block(content.as_str().unwrap_or_default());
        fs::write(authority.join(name), content.or_fail(format!("decode {name}"))?).or_fail("write the CA")?;
    }
    Ok(authority)
}

/// A pod that keeps the restricted Pod Security Standard.
pub(crate) fn simple_pod(account: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "simple" },
        "spec": {
            "serviceAccountName": account,
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "simple",
                "image": "localhost/simple",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}
