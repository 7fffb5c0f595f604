use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use sds_shim_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tokio::time::{Sleep, sleep};
use tokio_stream::{Stream, wrappers::WatchStream};

use super::{
    body::Responses,
    message::{self, Pieces},
};
use crate::{clock, status::Status};

pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(super) const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Services whose health can be asked for; the empty name is the whole process.
const SERVICES: [&str; 3] = ["", "envoy.service.secret.v3.SecretDiscoveryService", "SpiffeWorkloadAPI"];
/// The clock may be set while somebody watches.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// gRPC's health checking protocol: whether every secret that is needed is held and can be used.
pub(super) struct Health {
    status: Arc<Status>,
    told: Option<ServingStatus>,
    known: bool,
    /// What makes us look again; nothing for a single check.
    again: Option<Again>,
}

struct Again {
    changes: WatchStream<()>,
    /// Until a certificate ends, which is no change that anybody tells.
    end: Pin<Box<Sleep>>,
}

impl Health {
    /// # Errors
    /// `NOT_FOUND` for an unknown service, where the protocol has no answer for it.
    pub(super) fn new(request: &HealthCheckRequest, status: Arc<Status>, watch: bool) -> Result<Self, tonic::Status> {
        let known = SERVICES.contains(&request.service.as_str());
        if !known && !watch {
            return Err(tonic::Status::not_found("unknown service"));
        }
        let again = watch.then(|| Again {
            changes: WatchStream::from_changes(status.changes()),
            end: Box::pin(sleep(Duration::ZERO)),
        });
        Ok(Self { status, told: None, known, again })
    }

    fn look(&self) -> ServingStatus {
        match self.status.readiness(clock::now()) {
            _ if !self.known => ServingStatus::ServiceUnknown,
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        }
    }
}

impl Responses for Health {
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, tonic::Status>>> {
        loop {
            let found = self.look();
            if self.told != Some(found) {
                self.told = Some(found);
                let response = HealthCheckResponse { status: found.into() };
                return Poll::Ready(Some(Ok(message::plain(&response))));
            }
            let Some(again) = &mut self.again else { return Poll::Ready(None) };
            if let Poll::Ready(changed) = Pin::new(&mut again.changes).poll_next(cx) {
                match changed {
                    Some(()) => continue,
                    None => return Poll::Ready(None),
                }
            }
            let left = self.status.ready_until().saturating_sub(clock::now());
            if found != ServingStatus::Serving {
                return Poll::Pending;
            }
            // One second more, because the clock is read in whole ones.
            let wait = Duration::from_secs(left.max(0) as u64 + 1).min(LONGEST_SLEEP);
            again.end.set(sleep(wait));
            if again.end.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
