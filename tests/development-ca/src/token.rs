//! Projected service-account tokens: minting as Kubernetes does, and verification against the JWKS.

mod issuer;
mod verifier;

pub use issuer::{Algorithm, TokenIssuer, TokenRequest};
pub(crate) use verifier::{TokenVerifier, unverified_subject};
