//! Projected service-account tokens: minting as Kubernetes does, and verification against a JWKS or by TokenReview.

mod authority;
mod issuer;
mod verifier;

pub(crate) use authority::Authority;
pub use issuer::{Algorithm, TokenIssuer, TokenRequest};
pub(crate) use verifier::Unverified;
