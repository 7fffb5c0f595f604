use std::path::PathBuf;

use super::{reader::Reader, variables};

pub(super) const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const OWN_TOKEN_FILE: &str = "./var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where the service-account token comes from.
#[derive(Debug)]
pub struct TokenConfig {
    /// The projected file; `None` when each request brings its own token.
    pub file: Option<PathBuf>,
    /// The audience that a token must carry; `None` for any.
    pub audience: Option<String>,
}

pub(super) fn read(reader: &mut Reader<'_>) -> TokenConfig {
    let by_metadata_server = reader.choice(&variables::CREDENTIAL_FETCHER_TYPE, [false, true]);
    if by_metadata_server {
        reader.notes.push(
            "CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine: no token is fetched from the metadata server; the token file is \
             used, and something else must write it",
        );
    }
    let policies = [("third-party-jwt", (TOKEN_FILE, Some("istio-ca"))), ("first-party-jwt", (OWN_TOKEN_FILE, None))];
    // Any other value means the projected token to Istio's agent as well.
    let policy = reader.text(&variables::JWT_POLICY);
    let policy = policies.iter().find(|(name, _)| policy.as_deref() == Some(name));
    let (file, audience) = policy.unwrap_or(&policies[0]).1;
    let file = reader.choice(&variables::SDS_SHIM_TOKEN_SOURCE, [Some(file), None]).map(PathBuf::from);
    let audience = reader.text(&variables::SDS_SHIM_TOKEN_AUDIENCE).or(audience.map(str::to_owned));
    TokenConfig { file, audience }
}
