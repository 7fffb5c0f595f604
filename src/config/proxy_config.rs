use saphyr_parser::{Event, Parser, ScalarStyle};

const NO_LIST: &str = "caCertificatesPem is not a list of strings";

/// What of Istio's `ProxyConfig` (istio/api, `mesh/v1alpha1/proxy.proto`) concerns us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyConfig {
    /// `discoveryAddress`: where the control plane is, and with it the CA.
    pub(super) discovery_address: Option<String>,
    /// `caCertificatesPem`: further trust anchors of the mesh.
    pub(super) ca_certificates: Vec<String>,
}

impl ProxyConfig {
    /// Reads YAML, and with it JSON, which is a part of YAML 1.2. What is not of interest is skipped.
    ///
    /// # Errors
    /// Where the text is no YAML, or the fields are not of their type.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        // The way from the outermost mapping to where we are.
        let (mut depth, mut field) = (0_usize, None::<Field>);
        for event in Parser::new_from_str(text) {
            let (event, at) = event.map_err(|error| format!("expected JSON or YAML: {error}"))?;
            let misplaced = |what: &str| format!("{what} in line {}", at.start.line());
            match event {
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    match (depth, field, &event) {
                        (0, _, Event::SequenceStart(..)) => return Err(misplaced("expected a mapping, not a list")),
                        (1, Some(Field::DiscoveryAddress), _) => {
                            return Err(misplaced("discoveryAddress is not a string"));
                        }
                        (1, Some(Field::CaCertificates), Event::MappingStart(..))
                        | (2.., Some(Field::CaCertificates), _) => return Err(misplaced(NO_LIST)),
                        _ => {}
                    }
                    depth += 1;
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    depth -= 1;
                    if depth == 1 {
                        field = None;
                    }
                }
                Event::Scalar(value, style, ..) => {
                    // Unset, as protobuf's JSON has it; in quotes it would be a text.
                    let is_null = style == ScalarStyle::Plain && ["", "~", "null"].contains(&&*value);
                    match (depth, field) {
                        (0, _) if !value.is_empty() && !is_null => return Err(misplaced("expected a mapping")),
                        (1, None) => field = Some(Field::named(&value)),
                        (1, Some(known)) => {
                            match known {
                                Field::DiscoveryAddress if !is_null && !value.is_empty() => {
                                    config.discovery_address = Some(value.into_owned());
                                }
                                Field::CaCertificates if !is_null => return Err(misplaced(NO_LIST)),
                                _ => {}
                            }
                            field = None;
                        }
                        (2, Some(Field::CaCertificates)) => config.ca_certificates.push(value.into_owned()),
                        _ => {}
                    }
                }
                // What stands for a value elsewhere is none of the two fields that we read.
                Event::Alias(_) if depth == 1 => field = None,
                _ => {}
            }
        }
        Ok(config)
    }
}

/// A field of the outermost mapping.
#[derive(Clone, Copy)]
enum Field {
    DiscoveryAddress,
    CaCertificates,
    Other,
}

impl Field {
    /// By its name in protobuf's JSON, or by the one that the definition has: a reader must know both.
    fn named(name: &str) -> Self {
        match name {
            "discoveryAddress" | "discovery_address" => Self::DiscoveryAddress,
            "caCertificatesPem" | "ca_certificates_pem" => Self::CaCertificates,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<String>, Vec<String>) {
        let config = ProxyConfig::parse(text).unwrap();
        (config.discovery_address, config.ca_certificates)
    }

    #[test]
    fn json_as_the_injector_writes_it() {
        let text = r#"{"binaryPath":"/usr/local/bin/envoy","discoveryAddress":"istiod.istio-system.svc:15012",
            "proxyMetadata":{"discoveryAddress":"not this","A":"b"},"statusPort":15020,"terminationDrainDuration":"5s",
            "caCertificatesPem":["one\ntwo\n","three"],"tracing":{"zipkin":{"address":"x:9411"}}}
            "#;
        let expected = (Some("istiod.istio-system.svc:15012".to_owned()), vec!["one\ntwo\n".into(), "three".into()]);
        assert_eq!(parsed(text), expected);
        assert_eq!(parsed("{}"), (None, Vec::new()));
        for unset in [r#"{"discoveryAddress":""}"#, r#"{"discoveryAddress":null,"caCertificatesPem":null}"#] {
            assert_eq!(parsed(unset), (None, Vec::new()));
        }
        let snake = r#"{"discovery_address":"null:1","ca_certificates_pem":["one"]}"#;
        assert_eq!(parsed(snake), (Some("null:1".to_owned()), vec!["one".into()]));
        assert_eq!(parsed(r#"{"discoveryAddress":"null"}"#).0, Some("null".to_owned()));
    }

    #[test]
    fn yaml_as_people_write_it() {
        let text = "\
# the mesh
proxyMetadata: {discoveryAddress: no}
discoveryAddress: istiod.example:15012
caCertificatesPem:
- |
  one
  two
- three
concurrency: 2
";
        let expected = (Some("istiod.example:15012".to_owned()), vec!["one\ntwo\n".into(), "three".into()]);
        assert_eq!(parsed(text), expected);
        assert_eq!(parsed(""), (None, Vec::new()));
    }

    #[test]
    fn an_invalid_proxy_config_is_reported_with_its_line() {
        for (text, expected) in [
            ("{", "expected JSON or YAML"),
            ("a: [", "expected JSON or YAML"),
            ("[1]", "expected a mapping, not a list in line 1"),
            ("just text", "expected a mapping in line 1"),
            ("\ndiscoveryAddress: [a]", "discoveryAddress is not a string in line 2"),
            ("caCertificatesPem: {a: b}", "caCertificatesPem is not a list of strings in line 1"),
            ("caCertificatesPem: one", "caCertificatesPem is not a list of strings in line 1"),
            ("ca_certificates_pem: [[a]]", "caCertificatesPem is not a list of strings in line 1"),
            ("caCertificatesPem: [[a]]", "caCertificatesPem is not a list of strings in line 1"),
        ] {
            let error = ProxyConfig::parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }
}
