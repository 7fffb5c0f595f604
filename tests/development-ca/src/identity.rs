//! The identity that a token, a client certificate or a CSR names.

use std::fmt;

use openssl::x509::X509Ref;

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) trust_domain: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
}

impl Identity {
    /// `None` unless `uri` is exactly such a SPIFFE ID in `trust_domain`.
    pub(crate) fn from_uri(uri: &str, trust_domain: &str) -> Option<Identity> {
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?.strip_prefix("/ns/")?;
        let (namespace, service_account) = path.split_once("/sa/")?;
        Identity::new(trust_domain, namespace, service_account)
    }

    /// `None` when a name could not be a Kubernetes object's: a slash in one would name another identity.
    pub(crate) fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Option<Identity> {
        (is_object_name(namespace) && is_object_name(service_account)).then(|| Identity {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// The identity in a certificate that has one URI SAN and no other SAN.
    pub(crate) fn from_certificate(certificate: &X509Ref, trust_domain: &str) -> Option<Identity> {
        let names = certificate.subject_alt_names()?;
        let mut names = names.iter();
        match (names.next(), names.next()) {
            (Some(only), None) => Identity::from_uri(only.uri()?, trust_domain),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// RFC 1123 subdomain: what Kubernetes lets a service account be called.
fn is_object_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 253 && bytes.iter().copied().all(inner) && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn only_a_whole_spiffe_id_of_the_trust_domain_is_an_identity() {
        let good = "spiffe://cluster.local/ns/foo/sa/sleep";
        assert_eq!(Identity::from_uri(good, "cluster.local").map(|i| i.to_string()).as_deref(), Some(good));
        for bad in [
            "spiffe://cluster.local.evil/ns/foo/sa/sleep",
            "spiffe://cluster.local/ns/foo/sa/sleep/",
            "spiffe://cluster.local/ns/foo/sa/a/sa/b",
            "spiffe://cluster.local/ns//sa/sleep",
            "spiffe://cluster.local/ns/foo/sa/",
            "spiffe://cluster.local/ns/Foo/sa/sleep",
            "spiffe://cluster.local/sa/sleep",
            "https://cluster.local/ns/foo/sa/sleep",
        ] {
            assert_eq!(Identity::from_uri(bad, "cluster.local"), None, "{bad}");
        }
    }
}
