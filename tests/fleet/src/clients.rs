//! The two clients: `sds-shim`, all of whose decisions are the shipped functions', and Istio's agent with its Envoy.

mod istio;
mod shim;

pub use istio::Agent;
pub use shim::Shim;
