//! What can be set before the CA starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::kubernetes::Kubernetes;
use crate::pki::{Leaf, Pki};

/// Settings of a [`DevelopmentCa`](crate::DevelopmentCa); the defaults are istiod's where it has one.
#[derive(Clone)]
pub struct CaOptions {
    /// Trust domain of every identity signed here.
    pub trust_domain: String,
    /// Longest lifetime given out, counted from now; who asks for nothing gets this (istiod: 24 h).
    pub max_ttl: Duration,
    /// Whether to refuse who asks for more, as istiod does; else the longest lifetime is given, as by istio-csr.
    pub refuse_longer: bool,
    /// How long before the present a certificate's NotBefore lies.
    pub backdate: Duration,
    /// What happens with client certificates.
    pub client_certificates: ClientCertificates,
    /// DNS names in the server's certificate.
    pub server_names: Vec<String>,
    /// The server's certificate in full, in place of one for `server_names`.
    pub server_leaf: Option<Leaf>,
    /// What follows the server's own chain (PEM), whatever it is.
    pub server_chain: Vec<String>,
    /// The PKI under which the server's certificate is issued, when it is another than the workloads'.
    pub server_pki: Option<Arc<Pki>>,
    /// TLS versions offered.
    pub tls: TlsVersions,
    /// Groups for the key exchange, as OpenSSL lists them; its own when `None`.
    pub groups: Option<String>,
    /// Audience that a token must name.
    pub audience: String,
    /// Issuer that a token must name; a cluster's API server tells its own.
    pub issuer: String,
    /// The cluster whose tokens are believed in place of those of the [`TokenIssuer`](crate::TokenIssuer).
    pub kubernetes: Option<Kubernetes>,
    /// Further roots (PEM) in the last element of the answer, after the signing one.
    pub extra_roots: Vec<String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// HTTP/2 without TLS, as on istiod's port 15010; client certificates are out of reach then.
    pub plaintext: bool,
}

impl Default for CaOptions {
    fn default() -> Self {
        CaOptions {
            trust_domain: "cluster.local".to_owned(),
            max_ttl: Duration::from_secs(24 * 3600),
            refuse_longer: false,
            backdate: Duration::from_secs(120),
            client_certificates: ClientCertificates::Accept,
            server_names: vec!["istiod.istio-system.svc".to_owned(), "localhost".to_owned()],
            server_leaf: None,
            server_chain: Vec::new(),
            server_pki: None,
            tls: TlsVersions::Both,
            groups: None,
            audience: "istio-ca".to_owned(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            kubernetes: None,
            extra_roots: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            plaintext: false,
        }
    }
}

/// What the TLS server does about client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Asked for; one that does not verify fails the handshake, none at all is fine (istiod).
    Accept,
    /// A handshake without one fails.
    Require,
    /// Not asked for, so no client sends one.
    Off,
}

/// TLS versions that the server negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    Both,
    /// 1.2 only.
    Only12,
    /// 1.3 only.
    Only13,
}
