use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    },
};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Status, Streaming};

use super::{
    limits::Place,
    payload,
    report::Report,
    subscription::{Outcome, ProtocolError, Subscription},
};
use crate::store::{Snapshot, View};

/// One of the two streaming variants of xDS: how its requests are understood and its responses written.
pub(super) trait Variant: Unpin + Send + 'static {
    type Request: Unpin + Send;
    type Response: Send;

    fn request(
        subscription: &mut Subscription,
        request: &Self::Request,
        snapshot: &Snapshot,
    ) -> Result<Outcome, ProtocolError>;

    /// `None` where the variant has no words for the outcome.
    fn response(outcome: &Outcome, nonce: String) -> Option<Self::Response>;
}

/// State of the world (`StreamSecrets`).
pub(super) struct StateOfTheWorld;

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(
        subscription: &mut Subscription,
        request: &DiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Outcome, ProtocolError> {
        subscription.request(request, snapshot)
    }

    fn response(outcome: &Outcome, nonce: String) -> Option<DiscoveryResponse> {
        // A removal cannot be said in this variant: the client keeps what it has.
        (!outcome.send.is_empty()).then(|| DiscoveryResponse {
            version_info: version(outcome),
            resources: outcome.send.iter().map(|(_, secret)| payload::any(secret)).collect(),
            type_url: SECRET_TYPE_URL.to_owned(),
            nonce,
        })
    }
}

/// Incremental (`DeltaSecrets`).
pub(super) struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(
        subscription: &mut Subscription,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Outcome, ProtocolError> {
        subscription.delta_request(request, snapshot)
    }

    fn response(outcome: &Outcome, nonce: String) -> Option<DeltaDiscoveryResponse> {
        let resource = |(name, secret): &(String, Arc<crate::store::Secret>)| Resource {
            name: name.clone(),
            version: secret.version().to_owned(),
            resource: Some(payload::any(secret)),
        };
        Some(DeltaDiscoveryResponse {
            system_version_info: version(outcome),
            resources: outcome.send.iter().map(resource).collect(),
            type_url: SECRET_TYPE_URL.to_owned(),
            removed_resources: outcome.removed.clone(),
            nonce,
        })
    }
}

/// The version of a response: that of its resource, or of all of them in the order of their names.
fn version(outcome: &Outcome) -> String {
    outcome.send.iter().map(|(_, secret)| secret.version()).collect::<Vec<_>>().join("+")
}

/// The answering side of one stream: it is polled only when the client can take more, so that a client that never
/// reads costs one response at the most.
pub(super) struct SecretStream<V: Variant> {
    requests: Streaming<V::Request>,
    views: WatchStream<View>,
    view: View,
    subscription: Subscription,
    report: Report,
    ended: bool,
    _place: Place,
}

impl<V: Variant> SecretStream<V> {
    pub(super) fn new(
        requests: Streaming<V::Request>,
        mut views: watch::Receiver<View>,
        subscription: Subscription,
        report: Report,
        place: Place,
    ) -> Self {
        let view = views.borrow_and_update().clone();
        Self {
            requests,
            views: WatchStream::from_changes(views),
            view,
            subscription,
            report,
            ended: false,
            _place: place,
        }
    }

    /// The next response or the reason of the end; `None` when the client has ended the stream.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<V::Response, Status>>> {
        loop {
            let snapshot = match &self.view {
                View::Open(snapshot) => Arc::clone(snapshot),
                View::Ended(reason) => return Poll::Ready(Some(Err(Status::unauthenticated(&**reason)))),
            };
            let outcome = match Pin::new(&mut self.views).poll_next(cx) {
                Poll::Ready(Some(view)) => {
                    self.view = view;
                    let View::Open(snapshot) = &self.view else { continue };
                    self.subscription.changed(snapshot)
                }
                // The store is gone only when the process ends.
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let request = match Pin::new(&mut self.requests).poll_next(cx) {
                        Poll::Ready(Some(Ok(request))) => request,
                        Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                        Poll::Ready(None) => return Poll::Ready(None),
                        Poll::Pending => return Poll::Pending,
                    };
                    match V::request(&mut self.subscription, &request, &snapshot) {
                        Ok(outcome) => {
                            self.report.request(&outcome, &self.subscription, &snapshot);
                            outcome
                        }
                        Err(error) => return Poll::Ready(Some(Err(Status::invalid_argument(error.to_string())))),
                    }
                }
            };
            if outcome.is_response()
                && let Some(response) = V::response(&outcome, self.subscription.nonce())
            {
                self.report.response(&outcome);
                return Poll::Ready(Some(Ok(response)));
            }
        }
    }
}

impl<V: Variant> Stream for SecretStream<V> {
    type Item = Result<V::Response, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.poll_response(cx);
        self.ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}
