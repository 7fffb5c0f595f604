//! A Citadel-style CA for development and tests only: never for production.
//!
//! It speaks `istio.v1.auth.IstioCertificateService/CreateCertificate` over HTTP/2 and OpenSSL's TLS, verifies
//! projected service-account tokens against a JWKS or has Kubernetes' API server do so, signs with an intermediate under a root, and does on request what
//! a broken CA would do. Its private keys lie in memory and in files without protection, and whoever starts it can
//! mint a token for any identity.
//!
//! It shares the protocol crate with `sds-shim` and nothing else, so that a mistake there is not repeated here.
//!
//! As everywhere in test code, a failure of OpenSSL's own (no memory, no entropy) panics with the operation's name;
//! what a peer or a file can get wrong is an error.
#![forbid(unsafe_code)]

mod crypto;
mod csr;
mod fault;
mod flood;
mod identity;
mod kubernetes;
mod options;
mod pki;
mod projected;
mod record;
mod server;
mod service;
pub mod state;
mod tls;
mod token;

pub use fault::{Fault, PlainAnswer, SignOverrides};
pub use flood::Flood;
pub use kubernetes::{Kubernetes, Method};
pub use options::{CaOptions, ClientCertificates, TlsVersions};
pub use pki::{CrlOptions, Issued, Leaf, Lifetime, Pki, PkiOptions};
pub use projected::{ProjectedFile, ProjectedVolume};
pub use record::{Authorization, Call, Outcome, Peer};
pub use server::DevelopmentCa;
pub use token::{Algorithm, TokenIssuer, TokenRequest};
