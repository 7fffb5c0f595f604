//! What a certificate below the intermediate says.

use std::net::IpAddr;
use std::time::Duration;

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// Leaf and intermediate, PEM.
    pub chain_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// Content of a certificate; start from [`Leaf::server`] or [`Leaf::workload`] and change fields.
#[derive(Clone, Debug, Default)]
pub struct Leaf {
    /// The subject's common name; without one the subject is empty.
    pub common_name: Option<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// IP SANs.
    pub ip: Vec<IpAddr>,
    /// URI SANs.
    pub uri: Vec<String>,
    /// NotBefore, seconds from now.
    pub not_before: i64,
    /// NotAfter, seconds from now.
    pub not_after: i64,
    /// Extended key usage serverAuth.
    pub server_auth: bool,
    /// Extended key usage clientAuth; with neither of the two the extension is left out.
    pub client_auth: bool,
    /// Basic constraint CA, and the key usage that goes with it.
    pub ca: bool,
    /// Key usage keyEncipherment alone, without digitalSignature.
    pub key_encipherment_only: bool,
    /// No basic constraints at all, as Vault's PKI issues.
    pub unconstrained: bool,
}

impl Leaf {
    /// A server's certificate for 90 days.
    pub fn server(dns: &[&str]) -> Leaf {
        Leaf {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            not_before: -120,
            not_after: 90 * 86_400,
            server_auth: true,
            ..Leaf::default()
        }
    }

    /// A workload's certificate: one URI SAN, serverAuth and clientAuth, backdated by 2 minutes.
    pub fn workload(spiffe_id: &str, ttl: Duration) -> Leaf {
        Leaf {
            uri: vec![spiffe_id.to_owned()],
            not_before: -120,
            not_after: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            server_auth: true,
            client_auth: true,
            ..Leaf::default()
        }
    }
}
