use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sds_shim_proto::envoy::service::{
    discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    secret::v3::secret_discovery_service_server::SecretDiscoveryService,
};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    limits::{Limits, MAX_STREAMS, Place},
    report::{EXPECTED_NAMES, Report},
    stream::{Delta, SecretStream, StateOfTheWorld, Variant},
    subscription::Subscription,
};
use crate::{
    identity::{BearerToken, TokenError},
    store::{AttachError, View, Workloads},
};

/// The header in which Istio 1.1's Envoys sent the token, without a prefix.
const ISTIO_1_1_HEADER: &str = "istio_sds_credentials_header-bin";

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `envoy.service.secret.v3.SecretDiscoveryService`.
pub(super) struct SdsService {
    workloads: Arc<dyn Workloads>,
    limits: Limits,
    report: Report,
    streams: AtomicU64,
}

/// What a request is served with.
struct Attached {
    views: watch::Receiver<View>,
    subscription: Subscription,
    place: Place,
}

impl SdsService {
    /// `first_stream` makes nonces of this process differ from those of an earlier one.
    pub(super) fn new(workloads: Arc<dyn Workloads>, limits: Limits, first_stream: u64) -> Self {
        Self { workloads, limits, report: Report::default(), streams: AtomicU64::new(first_stream) }
    }

    fn attach(&self, metadata: &MetadataMap) -> Result<Attached, Status> {
        let place = self.limits.stream().ok_or_else(|| {
            Status::resource_exhausted(format!("there is no room for more streams; at most {MAX_STREAMS} can be open"))
        })?;
        let views = self.workloads.attach(token(metadata).map_err(AttachError::from)?)?;
        let subscription = Subscription::new(self.streams.fetch_add(1, Ordering::Relaxed));
        Ok(Attached { views, subscription, place })
    }

    fn stream<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
    ) -> Result<Response<Responses<V::Response>>, Status> {
        let Attached { views, subscription, place } = self.attach(request.metadata())?;
        let stream = SecretStream::<V>::new(request.into_inner(), views, subscription, self.report.clone(), place);
        Ok(Response::new(Box::pin(stream)))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stream::<StateOfTheWorld>(request)
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.stream::<Delta>(request)
    }

    /// Answers with what is held of the named secrets, at once if there is any, else as soon as there is.
    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let Attached { mut views, mut subscription, place: _place } = self.attach(request.metadata())?;
        let request = request.into_inner();
        loop {
            let view = views.borrow_and_update().clone();
            let snapshot = match view {
                View::Open(snapshot) => snapshot,
                View::Ended(reason) => return Err(Status::unauthenticated(&*reason)),
            };
            let outcome = subscription
                .request(&request, &snapshot)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            self.report.request(&outcome, &subscription, &snapshot);
            if let Some(response) = StateOfTheWorld::response(&outcome, subscription.nonce()) {
                self.report.response(&outcome);
                return Ok(Response::new(response));
            }
            if !request.resource_names.iter().any(|name| EXPECTED_NAMES.contains(&name.as_str())) {
                return Err(Status::not_found("none of the named resources is known here"));
            }
            if views.changed().await.is_err() {
                return Err(Status::unavailable("the server is shutting down"));
            }
        }
    }
}

impl From<AttachError> for Status {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::NoToken | AttachError::Token(_) | AttachError::Refused(_) => {
                Self::unauthenticated(error.to_string())
            }
            AttachError::TooMany => Self::resource_exhausted(error.to_string()),
        }
    }
}

/// The service-account token in a request's metadata, as Envoy's `file_based_metadata` credentials put it there.
fn token(metadata: &MetadataMap) -> Result<Option<BearerToken>, TokenError> {
    let bearer = |text: &str| text.strip_prefix("Bearer ").or(text.strip_prefix("bearer ")).map(str::to_owned);
    if let Some(value) = metadata.get("authorization") {
        let text = value.to_str().ok().and_then(bearer).ok_or(TokenError::NotAJwt)?;
        return BearerToken::parse(text).map(Some);
    }
    if let Some(value) = metadata.get_bin(ISTIO_1_1_HEADER) {
        let bytes = value.to_bytes().map_err(|_| TokenError::NotAJwt)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| TokenError::NotAJwt)?;
        return BearerToken::parse(bearer(text).unwrap_or_else(|| text.to_owned())).map(Some);
    }
    Ok(None)
}
