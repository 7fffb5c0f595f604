use sds_shim_proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tokio::time::timeout;
use tonic::{Request, Status, Streaming};

use super::{Http2, SdsClient};
use crate::{Failure, OrFail, PATIENCE};

/// An open `grpc.health.v1.Health/Watch`.
pub struct HealthWatch(Streaming<HealthCheckResponse>);

impl SdsClient {
    fn health(&self) -> HealthClient<Http2> {
        HealthClient::with_origin(self.sender.clone(), http::Uri::from_static(super::ORIGIN))
    }

    /// Calls `grpc.health.v1.Health/Check`.
    pub async fn check_health(&self, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        Ok(self.health().check(Request::new(request)).await?.into_inner().status())
    }

    /// Opens `grpc.health.v1.Health/Watch`.
    pub async fn watch_health(&self, service: &str) -> Result<HealthWatch, Failure> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let opened = self.health().watch(Request::new(request)).await.or_fail("watch the health")?;
        Ok(HealthWatch(opened.into_inner()))
    }
}

impl HealthWatch {
    /// The next status that is told.
    pub async fn next(&mut self) -> Result<ServingStatus, Failure> {
        let told = timeout(PATIENCE, self.0.message()).await.or_fail("wait for the health")?;
        let told = told.or_fail("watch the health")?;
        told.map(|response| response.status()).ok_or_else(|| Failure::new("the watch on the health has ended"))
    }
}
