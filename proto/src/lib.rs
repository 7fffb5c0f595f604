//! Envoy's SDS, gRPC's health checks, Istio's certificate service and the SPIFFE Workload API as Rust types.
//!
//! The definitions under `proto/` are the subset that `sds-shim` uses, with the original packages, names and
//! field numbers, so the wire format is that of the full definitions; fields that are not declared are skipped.
//! The code under `generated/` is made from them by `tests/drift.rs`, which also fails when the two differ.
#![forbid(unsafe_code)]
// The house rules for what ships: no panic can be reached from outside, nothing is printed past the log, and what
// `.clippy.toml` lists is called only where a reason stands. Unit tests do as they like.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::disallowed_methods
    )
)]

mod codec;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
#[path = "generated/mod.rs"]
mod generated;

pub use codec::{BytesCodec, SmallCodec};
pub use generated::{envoy, google, grpc, istio};

/// The SPIFFE Workload API, which has no package.
pub mod spiffe {
    pub use super::generated::{
        JwtsvidRequest, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
        spiffe_workload_api_client,
    };
}

/// The type URL of every SDS resource (Envoy, "xDS REST and gRPC protocol").
pub const SECRET_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
