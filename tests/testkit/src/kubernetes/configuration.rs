//! Keys, certificates, tokens and command lines of the control plane.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use development_ca::{Issued, Leaf, Pki};
use openssl::{pkey::PKey, rand::rand_bytes, rsa::Rsa};
use serde_json::json;

use crate::{Failure, OrFail};

/// The name of the node, where there is one.
pub(crate) const NODE_NAME: &str = "node1";

/// The issuer of the cluster's service-account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

const ROOT: &str = "root-cert.pem";
const CERTIFICATE: &str = "api-server-cert.pem";
const KEY: &str = "api-server-key.pem";
const ACCOUNTS_KEY: &str = "service-accounts-key.pem";
const ACCOUNTS_PUBLIC: &str = "service-accounts-public.pem";
const TOKENS: &str = "tokens.csv";
const ADMIN: &str = "admin.kubeconfig";
const CONTROLLERS: &str = "controllers.kubeconfig";
const NODE: &str = "node.kubeconfig";
/// Relative to the directory that the programs run in, because socket addresses are short. The directory is ours alone
/// and so is the socket in it: nobody else reaches etcd.
const ETCD: &str = "unix://etcd.sock";

/// Controllers of Kubernetes that have something to do where no node is.
const RUNNING: &[&str] = &[
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
];

/// Further ones, that a node and what runs on it give something to do.
const RUNNING_WITH_NODES: &[&str] = &[
    "daemonset-controller",
    "node-lifecycle-controller",
    "podcertificaterequest-cleaner-controller",
    "statefulset-controller",
    "taint-eviction-controller",
];

/// Where pods find the API server, by the address of the service `kubernetes`.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The files that the programs are started from.
pub(super) struct Configuration {
    directory: PathBuf,
    port: u16,
    /// The address by which nodes and pods reach the API server, where there are any.
    node: Option<Ipv4Addr>,
    root_pem: String,
}

impl Configuration {
    /// Writes fresh ones into `directory`, for an API server on loopback port `port`, and also on the address `node`.
    pub(super) fn write(directory: &Path, port: u16, node: Option<Ipv4Addr>) -> Result<Self, Failure> {
        let pki = Pki::new("kubernetes");
        let mut leaf = Leaf::server(&["localhost", "kubernetes.default.svc"]);
        leaf.ip.push(Ipv4Addr::LOCALHOST.into());
        leaf.ip.extend(node.into_iter().chain([SERVICE]).map(IpAddr::from));
        let Issued { chain_pem, key_pem } = pki.issue(&leaf);
        let accounts = Rsa::generate(2048).and_then(PKey::from_rsa).or_fail("make a key for tokens")?;
        let [admin, controllers, kubelet] = [secret()?, secret()?, secret()?];
        let tokens = format!(
            "{admin},admin,admin,\"system:masters\"\n{controllers},system:kube-controller-manager,controllers\n\
             {kubelet},system:node:{NODE_NAME},node,\"system:nodes\"\n"
        );
        let this = Self { directory: directory.to_owned(), port, node, root_pem: pki.root_pem() };
        let private = accounts.private_key_to_pem_pkcs8().or_fail("write the key for tokens")?;
        let [admin, controllers, kubelet] = [admin, controllers, kubelet].map(|token| this.kubeconfig(&token));
        let public = accounts.public_key_to_pem().or_fail("write the key for tokens")?;
        let files: [(&str, &[u8]); 9] = [
            (ROOT, this.root_pem.as_bytes()),
            (CERTIFICATE, chain_pem.as_bytes()),
            (KEY, key_pem.as_bytes()),
            (ACCOUNTS_KEY, &private),
            (ACCOUNTS_PUBLIC, &public),
            (TOKENS, tokens.as_bytes()),
            (ADMIN, admin.as_bytes()),
            (CONTROLLERS, controllers.as_bytes()),
            (NODE, kubelet.as_bytes()),
        ];
        for (name, content) in files {
            fs::write(directory.join(name), content).or_fail(format!("write {name}"))?;
        }
        Ok(this)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(super) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    pub(super) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub(super) fn root_file(&self) -> PathBuf {
        self.directory.join(ROOT)
    }

    /// With it one may do everything.
    pub(super) fn admin(&self) -> PathBuf {
        self.directory.join(ADMIN)
    }

    /// With it kubelet may do what the kubelet of [`NODE_NAME`] may.
    pub(super) fn kubelet(&self) -> PathBuf {
        self.directory.join(NODE)
    }

    /// Whether there is a node.
    pub(super) fn has_node(&self) -> bool {
        self.node.is_some()
    }

    /// Command line of etcd.
    pub(super) fn etcd(&self) -> Vec<String> {
        let data = "--data-dir=etcd".to_owned();
        let client = ["listen-client", "advertise-client"].map(|kind| format!("--{kind}-urls={ETCD}"));
        let peer = ["listen-peer", "initial-advertise-peer"].map(|kind| format!("--{kind}-urls=unix://peer.sock"));
        let members = "--initial-cluster=default=unix://peer.sock".to_owned();
        // What is lost with the machine is nobody's.
        let careless = "--unsafe-no-fsync".to_owned();
        [data, members, careless].into_iter().chain(client).chain(peer).collect()
    }

    /// Command line of the API server.
    pub(super) fn api_server(&self) -> Vec<String> {
        let advertised = self.node.unwrap_or(Ipv4Addr::LOCALHOST).to_string();
        let flags = [
            ("etcd-servers", ETCD),
            ("bind-address", if self.has_node() { "0.0.0.0" } else { "127.0.0.1" }),
            ("advertise-address", &advertised),
            // Without a node nobody finds the API server by its endpoints, and loopback may not be one.
            ("endpoint-reconciler-type", if self.has_node() { "lease" } else { "none" }),
            ("cert-dir", "."),
            ("tls-cert-file", CERTIFICATE),
            ("tls-private-key-file", KEY),
            ("token-auth-file", TOKENS),
            ("authorization-mode", "Node,RBAC"),
            ("enable-admission-plugins", "NodeRestriction"),
            ("kubelet-preferred-address-types", "InternalIP"),
            ("service-account-issuer", ISSUER),
            ("service-account-signing-key-file", ACCOUNTS_KEY),
            ("service-account-key-file", ACCOUNTS_PUBLIC),
            ("service-cluster-ip-range", "10.96.0.0/16"),
        ];
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        let port = format!("--secure-port={}", self.port);
        let keys = format!("--service-account-jwks-uri={}/openid/v1/jwks", self.url());
        flags.into_iter().chain([port, keys]).collect()
    }

    /// Command line of the controllers.
    pub(super) fn controllers(&self) -> Vec<String> {
        let with_nodes = if self.has_node() { RUNNING_WITH_NODES } else { &[] };
        let running = [RUNNING, with_nodes].concat().join(",");
        let flags = [
            ("kubeconfig", CONTROLLERS),
            ("controllers", &running),
            ("use-service-account-credentials", "true"),
            ("service-account-private-key-file", ACCOUNTS_KEY),
            ("root-ca-file", ROOT),
            ("leader-elect", "false"),
            ("secure-port", "0"),
        ];
        flags.map(|(name, value)| format!("--{name}={value}")).into()
    }

    /// Command line of the scheduler, which may do everything.
    pub(super) fn scheduler(&self) -> Vec<String> {
        [("kubeconfig", ADMIN), ("leader-elect", "false"), ("secure-port", "0")]
            .map(|(name, value)| format!("--{name}={value}"))
            .into()
    }

    fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "tests", "cluster": {
                "server": self.url(),
                "certificate-authority": self.root_file(),
            }}],
            "users": [{ "name": "user", "user": { "token": token } }],
            "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "user" } }],
            "current-context": "tests",
        })
        .to_string()
    }
}

/// A bearer token that nobody guesses.
fn secret() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    rand_bytes(&mut bytes).or_fail("make a token")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
