//! The issuer of the tokens as others find it: its two public documents over HTTP, as Kubernetes' API server has them.

use http::{Method, StatusCode};
use serde_json::{Value, json as object};

use crate::{
    Failure,
    development_ca::TokenIssuer,
    http_server::{Server, json},
};

/// OpenID Connect discovery for one [`TokenIssuer`]; it stops when it is dropped.
pub struct Discovery {
    server: Server,
}

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

impl Discovery {
    /// Serves the keys of `tokens` on a free loopback port.
    pub async fn start(tokens: &TokenIssuer) -> Result<Self, Failure> {
        let keys: Value = serde_json::from_str(&tokens.jwks()).map_err(|error| Failure::new(error.to_string()))?;
        let server = Server::start("the issuer's documents", move |request, _| {
            let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
            match (request.method(), request.uri().path()) {
                (&Method::GET, CONFIGURATION) => json(StatusCode::OK, &configuration(&format!("http://{host}"))),
                (&Method::GET, KEYS) => json(StatusCode::OK, &keys),
                _ => json(StatusCode::NOT_FOUND, &object!({ "error": "no such document" })),
            }
        });
        Ok(Self { server: server.await? })
    }

    /// The issuer (`iss`) that the documents are of; tokens must name it.
    pub fn issuer(&self) -> String {
        format!("http://{}", self.server.address())
    }
}

fn configuration(issuer: &str) -> Value {
    object!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
    })
}
