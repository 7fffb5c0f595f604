use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use prost::Message;
use sds_shim_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Status, Streaming};

use super::{
    account::Account,
    body::Responses,
    lease::Leases,
    message::{self, Pieces},
    report::StreamReport,
    service,
    subscription::{Outcome, ProtocolError, Subscription},
};
use crate::{
    clock,
    store::{Consumer, ROOTS, Snapshot, View},
};

/// One of the two streaming variants of xDS: how its requests are understood and its responses written.
pub(super) trait Variant: Unpin + Send + 'static {
    type Request: Message + Default + Send + 'static;

    /// The name of the call.
    const CALL: &'static str;

    fn request(
        subscription: &mut Subscription,
        request: &Self::Request,
        snapshot: &Snapshot,
        now: i64,
    ) -> Result<Outcome, ProtocolError>;

    /// `None` where the variant has no words for the outcome.
    fn response(outcome: &Outcome, nonce: String, mark: u64) -> Option<Pieces>;
}

/// State of the world (`StreamSecrets`).
pub(super) struct StateOfTheWorld;

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;

    const CALL: &'static str = "StreamSecrets";

    fn request(
        subscription: &mut Subscription,
        request: &DiscoveryRequest,
        snapshot: &Snapshot,
        now: i64,
    ) -> Result<Outcome, ProtocolError> {
        subscription.request(request, snapshot, now)
    }

    fn response(outcome: &Outcome, nonce: String, mark: u64) -> Option<Pieces> {
        // A removal cannot be said in this variant: the client keeps what it has.
        (!outcome.send.is_empty()).then(|| message::state_of_the_world(outcome, nonce, mark))
    }
}

/// Incremental (`DeltaSecrets`).
pub(super) struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;

    const CALL: &'static str = "DeltaSecrets";

    fn request(
        subscription: &mut Subscription,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
        now: i64,
    ) -> Result<Outcome, ProtocolError> {
        subscription.delta_request(request, snapshot, now)
    }

    fn response(outcome: &Outcome, nonce: String, mark: u64) -> Option<Pieces> {
        Some(message::delta(outcome, nonce, mark))
    }
}

/// The answering side of one stream: it is polled only when the client can take more, so that a client that never
/// reads costs one response at the most.
pub(super) struct SecretStream<V: Variant> {
    requests: Streaming<V::Request>,
    changes: WatchStream<View>,
    /// Looked into for each answer; nothing is kept, so that a client that does not read keeps no old key alive.
    consumer: Consumer,
    subscription: Subscription,
    report: StreamReport,
    leases: Leases,
    /// Until the first message has come, how the call ends without it.
    given_up: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl<V: Variant> SecretStream<V> {
    pub(super) fn new(
        requests: Streaming<V::Request>,
        mut consumer: Consumer,
        subscription: Subscription,
        report: StreamReport,
        leases: Leases,
        account: Arc<Account>,
    ) -> Self {
        consumer.views.mark_unchanged();
        Self {
            requests,
            changes: WatchStream::from_changes(consumer.views.clone()),
            consumer,
            subscription,
            report,
            leases,
            given_up: Some(Box::pin(async move { service::given_up(&account).await })),
        }
    }
}

impl<V: Variant> Responses for SecretStream<V> {
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>> {
        loop {
            // Who does not read what it was sent gets no more, and is not listened to either.
            ready!(self.leases.poll_few(cx));
            let now = clock::now();
            let polled = Pin::new(&mut self.changes).poll_next(cx);
            let snapshot = match self.consumer.views.borrow().clone() {
                View::Open(snapshot) => self.report.rights().seen(snapshot),
                View::Ended(reason) => return Poll::Ready(Some(Err(Status::unauthenticated(&*reason)))),
            };
            let outcome = match polled {
                Poll::Ready(Some(_)) => self.subscription.changed(&snapshot, now),
                // The store is gone only when the process ends.
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let request = match Pin::new(&mut self.requests).poll_next(cx) {
                        Poll::Ready(Some(Ok(request))) => request,
                        Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                        Poll::Ready(None) => return Poll::Ready(None),
                        Poll::Pending => {
                            let Some(given_up) = &mut self.given_up else { return Poll::Pending };
                            return given_up.as_mut().poll(cx).map(|status| Some(Err(status)));
                        }
                    };
                    self.given_up = None;
                    match V::request(&mut self.subscription, &request, &snapshot, now) {
                        Ok(outcome) => {
                            self.report.request(&outcome, &self.subscription, &snapshot);
                            let rights = self.report.rights();
                            self.report.put_off(&self.consumer.wants(rights.files(self.subscription.names())));
                            outcome
                        }
                        Err(error) => return Poll::Ready(Some(Err(Status::invalid_argument(error.to_string())))),
                    }
                }
            };
            self.consumer.took_roots(self.subscription.answered(ROOTS));
            if outcome.is_response()
                && let Some(response) = V::response(&outcome, self.subscription.nonce(), self.report.mark())
            {
                self.report.response(&outcome);
                return Poll::Ready(Some(Ok(self.leases.lease(response))));
            }
        }
    }
}
