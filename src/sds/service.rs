use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use prost::Message;
use sds_shim_proto::{
    SmallCodec, envoy::service::discovery::v3::DiscoveryRequest, grpc::health::v1::HealthCheckRequest,
};
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tonic::{Status, Streaming, codec::Codec, metadata::MetadataMap};

use super::{
    account::Account,
    body::{Once, RequestBody, ResponseBody, Responses},
    crowd::Cause,
    health::{self, Health},
    lease::Leases,
    limits::{FIRST_MESSAGE, Limits, MAX_REQUEST, MAX_SMALL_REQUEST, Place},
    message::Pieces,
    report::{StreamReport, Told},
    rights::{Names, Rights},
    stream::{Delta, SecretStream, StateOfTheWorld, Variant},
    subscription::Subscription,
};
use crate::{
    budget::Taker,
    clock,
    identity::{BearerToken, TokenError},
    status::{self, Client, Page, Pages, StreamHandle},
    store::{AttachError, Consumer, Piece, View, Workloads},
};

/// The header in which Istio 1.1's Envoys sent the token, without a prefix.
const ISTIO_1_1_HEADER: &str = "istio_sds_credentials_header-bin";

/// How a call is answered.
type Answer = Result<http::Response<ResponseBody>, Status>;

/// The call that is answered once.
const FETCH: &str = "FetchSecrets";
const SERVICE: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";

/// What names there are, for people.
const KNOWN: &str = "default, ROOTCA, file-cert:CHAIN~KEY, file-root:FILE, file-root:system, file-token:FILE below \
                     SDS_SHIM_TOKEN_DIRECTORIES, and those of SDS_SHIM_NAMES";

/// `envoy.service.secret.v3.SecretDiscoveryService`. Requests are decoded by tonic; answers are written here, because
/// tonic's encoder would copy each key into a buffer of each stream.
#[derive(Clone)]
pub(super) struct SdsService {
    shared: Arc<Endpoint>,
    client: Arc<Connected>,
}

/// Who is at the other end of a connection, and what it was given.
pub struct Connected {
    shown: Client,
    /// Its user, if it is not our own.
    other: Option<u32>,
    leases: Leases,
    account: Arc<Account>,
}

/// What all connections to a socket have in common.
pub(super) struct Endpoint {
    limits: Limits,
    status: Arc<status::Status>,
    offered: Offered,
}

/// What a socket is for.
enum Offered {
    Secrets(Secrets),
    Other(Arc<dyn Calls>),
}

/// What SDS is served from.
struct Secrets {
    workloads: Arc<dyn Workloads>,
    names: Arc<dyn Names>,
    streams: AtomicU64,
    pages: Arc<dyn Pages>,
    told: Arc<Told>,
}

/// Another service on a socket of its own, whose calls bring one message at the most, and nothing in it.
pub trait Calls: Send + Sync + 'static {
    /// What answers the call at this path.
    ///
    /// # Errors
    /// How the call ends instead.
    fn call(&self, path: &str, headers: &HeaderMap, client: &Connected) -> Result<Box<dyn Responses>, Status>;
}

/// What is served: secrets, health, documents.
pub struct Served {
    /// The secrets of whoever asks.
    pub workloads: Arc<dyn Workloads>,
    /// Where it is told how it goes.
    pub status: Arc<status::Status>,
    /// The documents.
    pub pages: Arc<dyn Pages>,
    /// What names there are.
    pub names: Arc<dyn Names>,
}

/// What a request is served with.
struct Attached {
    consumer: Consumer,
    subscription: Subscription,
    report: StreamReport,
}

impl Endpoint {
    /// `first_stream` makes nonces and marks of this process differ from those of an earlier one.
    pub(super) fn new(served: Served, limits: Limits, first_stream: u64) -> Self {
        let Served { workloads, status, pages, names } = served;
        let told = Arc::new(Told::new(first_stream));
        let secrets = Secrets { workloads, names, streams: AtomicU64::new(first_stream), pages, told };
        Self { limits, status, offered: Offered::Secrets(secrets) }
    }

    /// Another service instead of SDS.
    pub(super) fn other(calls: Arc<dyn Calls>, status: Arc<status::Status>, limits: Limits) -> Self {
        Self { limits, status, offered: Offered::Other(calls) }
    }
}

impl Connected {
    /// Shows a stream that begins now, for as long as what is returned is held.
    pub fn stream(&self, call: &'static str) -> StreamHandle {
        self.shown.stream(call, clock::now())
    }

    /// What it was given and has not taken yet.
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }

    /// Whether a line about something that was sent may be written for its process.
    pub fn may_log(&self) -> MayLog {
        let group = Arc::clone(&self.account.group);
        Box::new(move || group.may_log(Cause::Sent))
    }
}

/// Whether a line may be written now.
pub type MayLog = Box<dyn Fn() -> bool + Send>;

impl SdsService {
    pub(super) fn new(
        shared: Arc<Endpoint>,
        client: Client,
        other: Option<u32>,
        leases: Leases,
        account: Arc<Account>,
    ) -> Self {
        Self { shared, client: Arc::new(Connected { shown: client, other, leases, account }) }
    }
}

impl hyper::service::Service<http::Request<Incoming>> for SdsService {
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Incoming>) -> Answering {
        // Without a place nothing is taken for the answer, not even its future.
        let Some(mut place) = self.shared.limits.stream(&self.client.account) else {
            return Answering::Refused(Some(Status::resource_exhausted(
                "stream limit reached; raise SDS_SHIM_ARENA_KIB",
            )));
        };
        let Self { shared, client } = self.clone();
        Answering::Admitted(Box::pin(async move {
            place.started();
            shared.answer(&client, request, place).await.unwrap_or_else(Status::into_http)
        }))
    }
}

/// An answer that is being made.
pub(super) enum Answering {
    Refused(Option<Status>),
    Admitted(Pin<Box<dyn Future<Output = http::Response<ResponseBody>> + Send>>),
}

impl Future for Answering {
    type Output = Result<http::Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Admitted(answer) => answer.as_mut().poll(cx).map(Ok),
            Self::Refused(status) => match status.take() {
                Some(status) => Poll::Ready(Ok(status.into_http())),
                None => Poll::Pending,
            },
        }
    }
}

impl Endpoint {
    async fn answer(&self, client: &Connected, request: http::Request<Incoming>, place: Place) -> Answer {
        let responses: Box<dyn Responses> = match (request.uri().path(), &self.offered) {
            (health::CHECK, _) => Box::new(self.health(client, request, false).await?),
            (health::WATCH, _) => Box::new(self.health(client, request, true).await?),
            (path, Offered::Other(calls)) => {
                let responses = calls.call(path, request.headers(), client)?;
                // It has no field, as that of a health check has none where it is empty; others are skipped.
                let mut requests = self.small(request)?;
                first(&mut requests, &client.account).await.transpose()?;
                responses
            }
            (path, Offered::Secrets(secrets)) => match path.trim_start_matches(SERVICE) {
                "StreamSecrets" => Box::new(secrets.stream::<StateOfTheWorld>(client, request)?),
                "DeltaSecrets" => Box::new(secrets.stream::<Delta>(client, request)?),
                FETCH => Box::new(Once(Some(secrets.fetch(client, request).await?))),
                path if request.method() == http::Method::GET => return Ok(secrets.page(client, path, place)),
                _ => {
                    return Err(Status::unimplemented(
                        "unknown service; available: SecretDiscoveryService v3 and grpc.health.v1",
                    ));
                }
            },
        };
        let mut response = http::Response::new(ResponseBody::new(responses, place));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }

    /// The messages of a call in which hardly anything is: where it announces more, nothing is taken for that.
    fn small(&self, request: http::Request<Incoming>) -> Result<Streaming<HealthCheckRequest>, Status> {
        messages(request, self.limits.taker(), MAX_SMALL_REQUEST).map(|(_, messages)| messages)
    }

    async fn health(
        &self,
        client: &Connected,
        request: http::Request<Incoming>,
        watch: bool,
    ) -> Result<Health, Status> {
        let mut requests = self.small(request)?;
        let request =
            first(&mut requests, &client.account).await.unwrap_or_else(|| Ok(HealthCheckRequest::default()))?;
        Health::new(&request, Arc::clone(&self.status), watch)
    }
}

impl Secrets {
    /// What our own commands ask for (`sds-shim status` and its kin).
    fn page(&self, client: &Connected, path: &str, place: Place) -> http::Response<ResponseBody> {
        let Page { status, content_type, body } = self.pages.page(path, None);
        let body = client.leases.lease(Pieces::from([Piece::Bytes(body)]));
        let mut response = http::Response::new(ResponseBody::document(body, place));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }

    fn attach(&self, client: &Connected, call: &'static str, metadata: &MetadataMap) -> Result<Attached, Status> {
        let token = token(metadata).map_err(AttachError::from)?;
        // A token that comes for the first time begins renewals that outlive its connection.
        let consumer = client.account.exempt(|| self.workloads.attach(token))?;
        let rights = Rights::new(Arc::clone(&self.names), client.other);
        let subscription = Subscription::new(self.streams.fetch_add(1, Ordering::Relaxed)).of(rights.clone());
        let shown = client.shown.stream(call, clock::now());
        let report = StreamReport::new(shown, rights, Arc::clone(&self.told), &client.account, call == FETCH);
        Ok(Attached { consumer, subscription, report })
    }

    fn stream<V: Variant>(
        &self,
        client: &Connected,
        request: http::Request<Incoming>,
    ) -> Result<SecretStream<V>, Status> {
        let (metadata, requests) = messages(request, Taker::Envoy, MAX_REQUEST)?;
        let Attached { consumer, subscription, report } = self.attach(client, V::CALL, &metadata)?;
        let leases = client.leases.clone();
        Ok(SecretStream::new(requests, consumer, subscription, report, leases, Arc::clone(&client.account)))
    }

    /// Answers with what is held of the named secrets, at once if there is any, else as soon as there is.
    async fn fetch(&self, client: &Connected, request: http::Request<Incoming>) -> Result<Pieces, Status> {
        let (metadata, mut requests) = messages::<DiscoveryRequest>(request, Taker::Envoy, MAX_REQUEST)?;
        let Attached { mut consumer, mut subscription, report } = self.attach(client, FETCH, &metadata)?;
        let rights = report.rights();
        let request = first(&mut requests, &client.account)
            .await
            .unwrap_or_else(|| Err(Status::invalid_argument("the call carries no request")))?;
        if request.resource_names.is_empty() {
            return Err(Status::invalid_argument(format!("the request names no resource; available: {KNOWN}")));
        }
        loop {
            let snapshot = match consumer.views.borrow_and_update().clone() {
                View::Open(snapshot) => rights.seen(snapshot),
                View::Ended(reason) => return Err(Status::unauthenticated(&*reason)),
            };
            let outcome = subscription
                .request(&request, &snapshot, clock::now())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            report.request(&outcome, &subscription, &snapshot);
            if let Some(response) = StateOfTheWorld::response(&outcome, subscription.nonce(), report.mark()) {
                report.response(&outcome);
                return Ok(client.leases.lease(response));
            }
            consumer.wants(rights.files(subscription.names()));
            if !request.resource_names.iter().any(|name| rights.can_have(name)) {
                if rights.refused(subscription.names()).is_some() {
                    return Err(Status::permission_denied(
                        "SDS_SHIM_FILE_DIRECTORIES does not allow this user to name these files",
                    ));
                }
                return Err(Status::not_found(format!("none of the requested resources is known; available: {KNOWN}")));
            }
            if consumer.views.changed().await.is_err() {
                return Err(Status::unavailable("the server is shutting down"));
            }
        }
    }
}

/// The first message of a call.
async fn first<T>(requests: &mut Streaming<T>, account: &Account) -> Option<Result<T, Status>> {
    tokio::select! {
        biased;
        message = requests.next() => message,
        status = given_up(account) => Some(Err(status)),
    }
}

/// Waits until nobody waits for the first message of a call any more: what has begun must not hold its place for ever,
/// nor its room while others wait for that. Answers how the call ends.
pub(super) async fn given_up(account: &Account) -> Status {
    let _begun = account.begins();
    tokio::select! {
        () = sleep(FIRST_MESSAGE) => {
            Status::deadline_exceeded(format!("the call carries no request after {} s", FIRST_MESSAGE.as_secs()))
        }
        () = account.crowded() => {
            Status::resource_exhausted("no memory for the rest of the request; raise SDS_SHIM_ARENA_KIB")
        }
    }
}

/// The metadata and the messages of a call.
fn messages<T: Message + Default + Send + 'static>(
    request: http::Request<Incoming>,
    taker: Taker,
    most: usize,
) -> Result<(MetadataMap, Streaming<T>), Status> {
    let (head, body) = request.into_parts();
    if head.headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Status::unimplemented("compressed requests are not supported"));
    }
    let decoder = SmallCodec::<T, T>::default().decoder();
    let messages = Streaming::new_request(decoder, RequestBody::new(body, taker), None, Some(most));
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
