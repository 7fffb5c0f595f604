//! The test kit of `sds-shim`: it starts the shipped binary, never links it, and surrounds it with real parts.
//!
//! `workload` lays out a pod's directory, `shim` and `envoy` run the two processes of a sidecar in it, `sds` speaks
//! to the shim as Envoy does, `pilot_agent` is Istio's own agent, `httpbin` is the application, `door` stands on the way
//! to the CA, `nameserver` knows its name, `istio_ca` is Istio's own CA, `citadel` a bare client for either,
//! `kubernetes` a cluster's control plane, `node` a node of it with kubelet and containerd, `fixture` is one pod as most
//! tests need it, and `scene` puts the rest of them and the development CA together into the
//! mesh that `make demo` shows.
#![forbid(unsafe_code)]

pub mod agent;
pub mod anchors;
pub mod calls;
pub mod citadel;
pub mod confined;
pub mod container;
pub mod der;
pub mod discovery;
pub mod door;
pub mod envoy;
pub mod failure;
pub mod fixture;
pub mod hostile;
pub mod http;
pub mod http_server;
pub mod httpbin;
#[cfg(target_arch = "x86_64")]
pub mod inside;
pub mod istio_ca;
pub mod kubernetes;
pub mod mount;
pub mod mtls_server;
pub mod nameserver;
pub mod node;
pub mod pilot_agent;
pub mod port;
pub mod process;
pub mod residency;
pub mod rng;
pub mod scan;
pub mod scene;
pub mod scratch;
pub mod sds;
pub mod shim;
pub mod swap;
pub mod tls;
pub mod unix;
pub mod workload;
pub mod workload_api;

pub use development_ca;
pub use failure::{Failure, OrFail, Result};
pub use workload::Workload;

use std::{path::PathBuf, time::Duration};

/// How long a wait for something that must happen lasts before it counts as failed.
///
/// It only bounds failures, so it is long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition that nobody announces, such as the state of an Envoy.
pub const POLL: Duration = Duration::from_millis(20);

/// The root directory of the workspace.
pub fn workspace() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).unwrap_or(manifest)
}
