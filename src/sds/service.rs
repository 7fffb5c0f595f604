use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, header::CONTENT_TYPE};
use hyper::body::Incoming;
use prost::Message;
use sds_shim_proto::{SmallCodec, envoy::service::discovery::v3::DiscoveryRequest};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::{Status, Streaming, codec::Codec, metadata::MetadataMap};

use super::{
    body::{Once, RequestBody, ResponseBody, Responses},
    limits::{Limits, MAX_REQUEST, Place},
    message::Pieces,
    report::{EXPECTED_NAMES, Report},
    stream::{Delta, SecretStream, StateOfTheWorld, Variant},
    subscription::Subscription,
};
use crate::{
    clock,
    identity::{BearerToken, TokenError},
    store::{AttachError, View, Workloads},
};

/// The header in which Istio 1.1's Envoys sent the token, without a prefix.
const ISTIO_1_1_HEADER: &str = "istio_sds_credentials_header-bin";

const SERVICE: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";

/// `envoy.service.secret.v3.SecretDiscoveryService`. Requests are decoded by tonic; answers are written here, because
/// tonic's encoder would copy each key into a buffer of each stream.
#[derive(Clone)]
pub(super) struct SdsService(Arc<Shared>);

struct Shared {
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
        let streams = AtomicU64::new(first_stream);
        Self(Arc::new(Shared { workloads, limits, report: Report::default(), streams }))
    }
}

impl hyper::service::Service<http::Request<Incoming>> for SdsService {
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { Ok(shared.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl Shared {
    async fn answer(&self, request: http::Request<Incoming>) -> Result<http::Response<ResponseBody>, Status> {
        let responses: Box<dyn Responses> = match request.uri().path().strip_prefix(SERVICE) {
            Some("StreamSecrets") => Box::new(self.stream::<StateOfTheWorld>(request)?),
            Some("DeltaSecrets") => Box::new(self.stream::<Delta>(request)?),
            Some("FetchSecrets") => Box::new(Once(Some(self.fetch(request).await?))),
            _ => return Err(Status::unimplemented("there is only the service SecretDiscoveryService, version 3")),
        };
        let mut response = http::Response::new(ResponseBody::new(responses));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }

    fn attach(&self, metadata: &MetadataMap) -> Result<Attached, Status> {
        let place = self.limits.stream().ok_or_else(|| {
            Status::resource_exhausted("there is no room for more streams now; SDS_SHIM_ARENA_KIB makes more")
        })?;
        let views = self.workloads.attach(token(metadata).map_err(AttachError::from)?)?;
        let subscription = Subscription::new(self.streams.fetch_add(1, Ordering::Relaxed));
        Ok(Attached { views, subscription, place })
    }

    fn stream<V: Variant>(&self, request: http::Request<Incoming>) -> Result<SecretStream<V>, Status> {
        let (metadata, requests) = messages(request)?;
        let Attached { views, subscription, place } = self.attach(&metadata)?;
        Ok(SecretStream::new(requests, views, subscription, self.report.clone(), place))
    }

    /// Answers with what is held of the named secrets, at once if there is any, else as soon as there is.
    async fn fetch(&self, request: http::Request<Incoming>) -> Result<Pieces, Status> {
        let (metadata, mut requests) = messages::<DiscoveryRequest>(request)?;
        let Attached { mut views, mut subscription, place: _place } = self.attach(&metadata)?;
        let request =
            requests.next().await.unwrap_or_else(|| Err(Status::invalid_argument("the call carries no request")))?;
        loop {
            let snapshot = match views.borrow_and_update().clone() {
                View::Open(snapshot) => snapshot,
                View::Ended(reason) => return Err(Status::unauthenticated(&*reason)),
            };
            let outcome = subscription
                .request(&request, &snapshot, clock::now())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            self.report.request(&outcome, &subscription, &snapshot);
            if let Some(response) = StateOfTheWorld::response(&outcome, subscription.nonce()) {
                self.report.response(&outcome);
                return Ok(response);
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

/// The metadata and the messages of a call.
fn messages<T: Message + Default + Send + 'static>(
    request: http::Request<Incoming>,
) -> Result<(MetadataMap, Streaming<T>), Status> {
    let (head, body) = request.into_parts();
    if head.headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Status::unimplemented("compressed requests are not taken"));
    }
    let decoder = SmallCodec::<T, T>::default().decoder();
    let messages = Streaming::new_request(decoder, RequestBody(body), None, Some(MAX_REQUEST));
    Ok((MetadataMap::from_headers(head.headers), messages))
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
