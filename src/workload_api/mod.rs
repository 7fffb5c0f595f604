//! The SPIFFE Workload API: the workload's own certificate, its key and the trust anchors for applications, on a socket of
//! its own. They are those that Envoy gets at the same moment.

mod message;
mod stream;
mod svid;

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::watch;
use tonic::Status;

use crate::{
    sds::{Calls, Connected, Responses},
    status,
    store::View,
};
use stream::{Kind, Updates};

pub use svid::encode;

const SERVICE: &str = "/SpiffeWorkloadAPI/";
/// What whoever calls must say, so that nobody can be talked into a call by what it forwards (SPIFFE Workload API,
/// section 3).
const HEADER: &str = "workload.spiffe.io";

/// Answers the calls of applications from what is held of the one workload.
pub struct WorkloadApi {
    view: watch::Receiver<View>,
    status: Arc<status::Status>,
}

impl WorkloadApi {
    /// Serves what this sees.
    pub fn new(view: watch::Receiver<View>, status: Arc<status::Status>) -> Self {
        Self { view, status }
    }
}

impl Calls for WorkloadApi {
    fn call(&self, path: &str, headers: &HeaderMap, client: &Connected) -> Result<Box<dyn Responses>, Status> {
        let Some(method) = path.strip_prefix(SERVICE) else {
            return Err(Status::unimplemented("unknown service; available: SpiffeWorkloadAPI and grpc.health.v1"));
        };
        // The one thing for which clients may be told that their call is wrong: they never come again.
        if headers.get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(
                "security header missing from request: send workload.spiffe.io: true",
            ));
        }
        let kind = match method {
            "FetchX509SVID" => Kind::Svid,
            "FetchX509Bundles" => Kind::Bundles,
            _ => {
                return Err(Status::unimplemented(
                    "only X.509-SVIDs are served (FetchX509SVID, FetchX509Bundles); for a JWT use the pod's projected \
                     service-account token",
                ));
            }
        };
        Ok(Box::new(Updates::new(kind, self.view.clone(), Arc::clone(&self.status), client)))
    }
}
