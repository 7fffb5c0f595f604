use std::{fmt, str::FromStr};

/// Why a name cannot be part of a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The trust domain has other characters than SPIFFE allows.
    #[error("a trust domain has only lower-case letters, digits, dots, dashes and underscores, at most 255 of them")]
    TrustDomain,
    /// A path segment has other characters than SPIFFE allows.
    #[error("expected a Kubernetes name: letters, digits, dots, dashes and underscores, at most 253 of them")]
    Segment,
}

/// The authority part of a SPIFFE ID (SPIFFE-ID specification, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".to_owned())
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(NameError::TrustDomain);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, the identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The identity that Istio gives to a service account.
    ///
    /// # Errors
    /// When a name has characters that SPIFFE does not allow in a path segment.
    pub fn for_service_account(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, NameError> {
        Self::check_segment(namespace)?;
        Self::check_segment(account)?;
        Ok(Self(format!("spiffe://{domain}/ns/{namespace}/sa/{account}")))
    }

    /// Any SPIFFE ID with a path (SPIFFE-ID specification, section 2).
    pub fn parse(text: &str) -> Option<Self> {
        let (domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
        let is_good =
            domain.parse::<TrustDomain>().is_ok() && path.split('/').all(|one| Self::check_segment(one).is_ok());
        (is_good && text.len() <= Self::LONGEST).then(|| Self(text.to_owned()))
    }

    /// Bytes of the longest one.
    const LONGEST: usize = 2048;

    /// The trust domain.
    pub fn domain(&self) -> TrustDomain {
        TrustDomain(self.0.split('/').nth(2).unwrap_or_default().to_owned())
    }

    /// The ID of the same workload in another trust domain.
    pub fn in_domain(&self, domain: &TrustDomain) -> Self {
        let path = self.0.splitn(4, '/').nth(3).unwrap_or_default();
        Self(format!("spiffe://{domain}/{path}"))
    }

    /// Whether `text` can be a path segment (SPIFFE-ID specification, section 2.2).
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_segment(text: &str) -> Result<(), NameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > 253 || matches!(text, "." | "..") || !text.bytes().all(allowed) {
            return Err(NameError::Segment);
        }
        Ok(())
    }

    /// The ID as it stands in a URI SAN.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One SPIFFE ID, or with `/*` at its end all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffePattern(String);

impl FromStr for SpiffePattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected SPIFFE IDs such as spiffe://cluster.local/ns/monitoring/sa/prometheus, or with \
                                /* at the end all below a path, as in spiffe://cluster.local/ns/monitoring/*";
        // The star stands for a segment.
        let one = text.strip_suffix("/*").map_or_else(|| text.to_owned(), |above| format!("{above}/x"));
        SpiffeId::parse(&one).map(|_| Self(text.to_owned())).ok_or(EXPECTED)
    }
}

impl SpiffePattern {
    /// Whether it is this one, or this one is below it.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self.0.strip_suffix('*') {
            Some(above) => id.0.starts_with(above),
            None => id.0 == self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_istio_identities() {
        let domain = "td.example".parse().unwrap();
        let id = SpiffeId::for_service_account(&domain, "foo", "sleep").unwrap();
        assert_eq!(id.as_str(), "spiffe://td.example/ns/foo/sa/sleep");
        assert_eq!(id.in_domain(&TrustDomain::default()).as_str(), "spiffe://cluster.local/ns/foo/sa/sleep");
        assert_eq!(id.in_domain(&domain), id);
        assert_eq!(id.domain(), domain);
    }

    #[test]
    fn a_pattern_is_one_id_or_all_below_a_path() {
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let prometheus = id("spiffe://td.example/ns/monitoring/sa/prometheus");
        for (pattern, expected) in [
            ("spiffe://td.example/ns/monitoring/sa/prometheus", true),
            ("spiffe://td.example/ns/monitoring/sa/prom", false),
            ("spiffe://td.example/ns/monitoring/*", true),
            ("spiffe://td.example/*", true),
            ("spiffe://td.example/ns/monitor/*", false),
            ("spiffe://td.example/ns/monitoring/sa/prometheus/*", false),
            ("spiffe://td.example.org/*", false),
            ("spiffe://other.example/ns/monitoring/sa/prometheus", false),
        ] {
            assert_eq!(pattern.parse::<SpiffePattern>().unwrap().matches(&prometheus), expected, "{pattern}");
        }
        for bad in [
            "",
            "*",
            "prometheus",
            "spiffe://td.example",
            "spiffe://td.example/",
            "spiffe://*",
            "spiffe://*/ns/a",
            "spiffe:///*",
            "spiffe://td.example/ns/mon*",
            "spiffe://td.example/*/sa/prometheus",
            "spiffe://td.example//*",
            "https://td.example/*",
            "SPIFFE://td.example/*",
        ] {
            assert!(bad.parse::<SpiffePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn invalid_ids_are_rejected() {
        for bad in
            ["spiffe://td", "spiffe://td/", "spiffe://td/a/", "spiffe://td/../a", "spiffe://TD/a", "spiffe://td/a?b"]
        {
            assert_eq!(SpiffeId::parse(bad), None, "{bad}");
        }
        assert_eq!(SpiffeId::parse(&format!("spiffe://td{}", "/abc".repeat(600))), None);
        assert_eq!(SpiffeId::parse("spiffe://td/a").unwrap().domain().to_string(), "td");
    }

    #[test]
    fn refuses_names_that_would_change_the_path() {
        for bad in ["", "..", ".", "a/b", "a b", "a?b", "ä", "a%2fb", &"x".repeat(254)] {
            assert_eq!(SpiffeId::check_segment(bad), Err(NameError::Segment), "{bad}");
        }
        for bad in ["", "Cluster.local", "a/b", "a:1", "a@b", &"x".repeat(256)] {
            assert_eq!(bad.parse::<TrustDomain>(), Err(NameError::TrustDomain), "{bad}");
        }
    }
}
