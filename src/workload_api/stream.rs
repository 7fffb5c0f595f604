use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use openssl::sha::Sha256;
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::Status;
use tracing::info;

use super::message;
use crate::{
    clock,
    sds::{Connected, Leases, MayLog, Pieces, Responses},
    status::{self, StreamHandle},
    store::{CERTIFICATE, ROOTS, Secret, Validation, View},
};

/// What a stream tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The certificate, its key, and the anchors.
    Svid,
    /// The anchors.
    Bundles,
}

impl Kind {
    fn call(self) -> &'static str {
        match self {
            Self::Svid => "FetchX509SVID",
            Self::Bundles => "FetchX509Bundles",
        }
    }

    fn resource(self) -> &'static str {
        match self {
            Self::Svid => CERTIFICATE,
            Self::Bundles => ROOTS,
        }
    }
}

/// The certificate's version or trust domain, and the anchors' digest.
type Sent = (String, [u8; 32]);

/// One stream: what is held now, and then whatever takes its place, for ever.
pub(super) struct Updates {
    kind: Kind,
    changes: WatchStream<View>,
    /// Looked into for each message; nothing is kept, so that a client that does not read keeps no old key alive.
    view: watch::Receiver<View>,
    status: Arc<status::Status>,
    shown: StreamHandle,
    leases: Leases,
    may_log: MayLog,
    /// What was sent last.
    sent: Option<Sent>,
}

impl Updates {
    pub(super) fn new(
        kind: Kind,
        mut view: watch::Receiver<View>,
        status: Arc<status::Status>,
        client: &Connected,
    ) -> Self {
        view.mark_unchanged();
        let shown = client.stream(kind.call());
        shown.wants([kind.resource()].into_iter(), clock::now());
        let (changes, leases, may_log) = (WatchStream::from_changes(view.clone()), client.leases(), client.may_log());
        Self { kind, changes, view, status, shown, leases, may_log, sent: None }
    }

    /// What is to be sent, with its versions, if it is something else than was sent before.
    ///
    /// # Errors
    /// Why there is nothing.
    fn next(&self) -> Result<Option<(Sent, Pieces)>, String> {
        let View::Open(snapshot) = self.view.borrow().clone() else { return Err("the shim has ended it".to_owned()) };
        let now = clock::now();
        let missing =
            || self.status.readiness(now).err().map_or("no certificate is held".to_owned(), |why| why.to_string());
        // It says whose anchors they are even when it has ended.
        let counts = |held: &&Arc<Secret>| self.kind == Kind::Bundles || held.is_valid(now);
        let held = snapshot.get(CERTIFICATE).filter(counts).ok_or_else(missing)?;
        let anchors = snapshot.get(ROOTS).ok_or_else(missing)?;
        let (Some(svid), Some(validation)) = (held.svid(), anchors.validation()) else { return Err(missing()) };
        let svid = svid.as_ref().map_err(|why| format!("the certificate cannot be served here: {why}"))?;
        // That of the secret counts revocation lists as well, which are not told here.
        let anchors = digest(&validation);
        let sent = match self.kind {
            Kind::Svid => (held.version().to_owned(), anchors),
            Kind::Bundles => (svid.id.domain().to_string(), anchors),
        };
        if self.sent.as_ref() == Some(&sent) {
            return Ok(None);
        }
        let message = match self.kind {
            Kind::Svid => message::svid(svid, &validation),
            Kind::Bundles => message::bundles(&svid.id.domain(), &validation),
        };
        let message = message.ok_or_else(|| format!("ROOTCA holds no anchor for {}", svid.id.domain()))?;
        Ok(Some((sent, message)))
    }
}

/// Which anchors these are, for which trust domains.
fn digest(validation: &Validation) -> [u8; 32] {
    let mut digest = Sha256::new();
    let own = [(String::new(), validation.anchors.clone())];
    for (domain, bundle) in own.iter().chain(&validation.domains) {
        digest.update(domain.as_bytes());
        digest.update(&[0]);
        bundle.anchors().iter().for_each(|anchor| digest.update(anchor.digest()));
    }
    digest.finish()
}

impl Responses for Updates {
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>> {
        loop {
            // Who does not read what it was sent gets no more.
            ready!(self.leases.poll_few(cx));
            let changed = match Pin::new(&mut self.changes).poll_next(cx) {
                Poll::Ready(Some(_)) => true,
                // The store is gone only when the process ends.
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => false,
            };
            match self.next() {
                Ok(Some((sent, message))) => {
                    self.sent = Some(sent);
                    let resource = self.kind.resource();
                    self.shown.sent([resource].into_iter(), clock::now());
                    if (self.may_log)() {
                        info!(call = self.kind.call(), "sent to an application");
                    }
                    return Poll::Ready(Some(Ok(self.leases.lease(message))));
                }
                // Clients come again, and log why. One that has been sent something keeps it, and its stream.
                Err(why) if self.sent.is_none() => return Poll::Ready(Some(Err(Status::unavailable(why)))),
                _ if changed => {}
                _ => return Poll::Pending,
            }
        }
    }
}
