//! The upstream CA: Citadel's `CreateCertificate` over HTTP/2 and (mutual) TLS.

mod answer;
mod channel;
mod citadel;
mod client_certificate;
mod dial;
mod error;
mod retry;
mod tls;
mod way;

pub use citadel::CitadelClient;
pub use client_certificate::ClientCertificate;
pub use error::CaError;
pub use tls::Negotiated;
pub use way::{NAME_FILES, Way};
