mod verify;

use std::{convert::Infallible, future, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, futures::Notified, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{Level, error, info, warn};
use verify::{nobody, verify};

use super::{
    backoff::Backoff,
    failure::SourceFailure,
    federation::{Federation, federation, merge, merged},
    generation::{self, Generation, Parts},
    patience::{Setback, Strain, wait_after},
    publisher::{Publisher, content},
    renewal::{random, wait_for_start},
    settings::RenewalSettings,
    trouble::{Held, Outage},
};
use crate::{
    clock::{self, WallTimer},
    config::{FilesConfig, WorkloadApiSource},
    files::Changes,
    identity::{Issued, KeySpec, PeerTrust, SpiffeId, TrustBundle, TrustDomain},
    memory,
    spiffe::{Told, WorkloadApi},
    status::{self, Endpoint, Workload},
    store::{CERTIFICATE, Content, SecretStore},
};

/// How long it may take to connect to the Workload API.
const REACHED_WITHIN: Duration = Duration::from_secs(10);
/// How long it may say nothing while nothing is held, before that is told: SPIRE's agent looks for a pod's container for up
/// to half a minute. And while something is held, before it is asked on another connection.
const SILENT: Duration = Duration::from_secs(10);
const GIVEN_UP: Duration = Duration::from_secs(60);
/// How long after its socket has appeared it may take until that listens and is open to us.
const SETTLES: Duration = Duration::from_millis(100);
/// It renews at half of a certificate's life. One of which less than this share is left is asked for again: whoever
/// stopped without closing the stream would never be noticed.
const OVERDUE_SHARE: i64 = 5;
/// The least pause between two such questions, in seconds.
const ASK_AGAIN: i64 = 30;
/// A stream that has lasted so long was none of those that end at once.
const LASTS: Duration = Duration::from_secs(60);

/// The key, the certificate and the trust anchors that a SPIFFE Workload API tells: served as long as they can be used,
/// whatever becomes of it.
pub struct Spiffe {
    api: WorkloadApi,
    endpoint: Option<Arc<Endpoint>>,
    key: KeySpec,
    files: FilesConfig,
    store: Arc<SecretStore>,
    force: Arc<Notify>,
    roots: Arc<Publisher>,
    told: watch::Sender<Federation>,
    shown: Arc<Workload>,
    trouble: Outage,
    backoff: Backoff,
    held: Option<Held>,
    /// Its version in the store.
    version: Option<String>,
    /// What of the federated bundles cannot be used, as it was told.
    flaws: Vec<String>,
    /// When (Unix seconds) what is held is asked for again, and whether that was told.
    due: Option<i64>,
    told_overdue: bool,
}

/// What became of a stream.
enum Ended {
    Failed(SourceFailure),
    /// It is to be opened again.
    Again,
}

impl Spiffe {
    /// Serves `store` from this Workload API.
    pub fn new(settings: &RenewalSettings, source: WorkloadApiSource, store: &Arc<SecretStore>) -> Self {
        let endpoint = settings.status.endpoint(&source.to_string());
        let WorkloadApiSource { socket, id } = source;
        let known = id.as_ref().map_or_else(|| "not known yet".to_owned(), ToString::to_string);
        let shown = settings.status.workload(known, store);
        let roots = Publisher::new(Arc::clone(store), &settings.rotation.roots, false, Arc::clone(&shown));
        Self {
            endpoint,
            api: WorkloadApi::new(socket, id),
            key: settings.key,
            files: settings.files,
            store: Arc::clone(store),
            force: Arc::clone(&settings.force),
            roots: Arc::new(roots),
            told: watch::Sender::default(),
            shown,
            trouble: Outage::default(),
            backoff: Backoff::default(),
            held: None,
            version: None,
            flaws: Vec::new(),
            due: None,
            told_overdue: false,
        }
    }

    /// Serves it for as long as it is polled.
    pub async fn run(mut self, files: watch::Receiver<PeerTrust>) -> Infallible {
        let (roots, told) = (Arc::clone(&self.roots), self.told.subscribe());
        let (both, all) = watch::channel(merged(&files.borrow(), &told.borrow()));
        tokio::select! {
            biased;
            // In this order, so that what is trusted is known when a certificate is published.
            never = merge(files, told, &both) => never,
            never = roots.follow(all) => never,
            never = self.follow() => never,
        }
    }

    async fn follow(&mut self) -> Infallible {
        let timer = WallTimer::new()
            .inspect_err(|error| warn!("no wall-clock timer, so an overdue renewal is not noticed: {error}"))
            .ok();
        let force = Arc::clone(&self.force);
        self.resume().await;
        loop {
            // Listened to from now on, so that a signal that comes during the attempt is not lost when it fails.
            let forced = force.notified();
            tokio::pin!(forced);
            let opened = Instant::now();
            let Ended::Failed(failure) = self.watch(timer.as_ref(), forced.as_mut()).await else { continue };
            if opened.elapsed() >= LASTS {
                self.backoff.reset();
            }
            let left = self.held.as_ref().map(|held| left(held.life.1));
            let setback = Setback::Failed { strain: Strain::Away, asked: None };
            let wait = wait_after(setback, left.filter(|left| !left.is_zero()), &mut self.backoff, random());
            self.failed(&failure, wait, &format!("retrying in {:.1} s", wait.as_secs_f64()));
            tokio::select! {
                biased;
                () = forced => info!("requested by signal: asking the Workload API again"),
                () = self.appears(&failure) => self.backoff.reset(),
                () = self.pause(timer.as_ref(), wait) => {}
            }
        }
    }

    /// Waits until the socket is there, if that is what was missing.
    async fn appears(&self, failure: &SourceFailure) {
        let socket = self.api.socket();
        if failure.reached() || socket.exists() {
            return future::pending().await;
        }
        // Others may write beside it.
        let mut changes = Changes::new(vec![socket.to_owned()], SETTLES, self.files.check);
        while !socket.exists() {
            changes.next().await;
        }
    }

    /// Waits; a clock that is set meanwhile may make what is held valid again.
    async fn pause(&self, timer: Option<&WallTimer>, wait: Duration) {
        match timer {
            Some(timer) => timer.pause(wait, || self.store.look_again()).await,
            None => sleep(wait).await,
        }
    }

    /// Takes what comes on one stream.
    async fn watch(&mut self, timer: Option<&WallTimer>, mut forced: Pin<&mut Notified<'_>>) -> Ended {
        let called = Instant::now();
        self.shown.attempts(clock::now(), None);
        let mut updates = tokio::select! {
            biased;
            () = forced.as_mut() => return self.asked_for(),
            opened = timeout(REACHED_WITHIN, self.api.watch()) => match opened {
                Ok(Ok(updates)) => updates,
                Ok(Err(error)) => return self.call_failed(called, error.into()),
                Err(_) => return self.call_failed(called, SourceFailure::Silent(REACHED_WITHIN)),
            },
        };
        let (mut answered, mut told_silent) = (false, false);
        loop {
            let told = tokio::select! {
                biased;
                told = updates.next() => told,
                () = forced.as_mut() => return self.asked_for(),
                () = due(timer, self.due, &self.store), if answered => {
                    self.overdue();
                    return Ended::Again;
                }
                // Whoever attests us may take a while; what is held is asked for on another connection.
                () = sleep(SILENT), if !told_silent && self.held.is_none() => {
                    told_silent = true;
                    self.failed(&SourceFailure::Silent(SILENT), Duration::ZERO, "waiting on the open stream");
                    continue;
                }
                () = sleep(GIVEN_UP), if !answered && self.held.is_some() => {
                    return self.call_failed(called, SourceFailure::Silent(GIVEN_UP));
                }
            };
            let told = match told {
                Ok(told) => told,
                Err(error) if answered => return Ended::Failed(error.into()),
                Err(error) => return self.call_failed(called, error.into()),
            };
            if !std::mem::replace(&mut answered, true) {
                self.called(called, None);
            }
            if let Err(failure) = self.take(told, timer).await {
                return Ended::Failed(failure);
            }
        }
    }

    fn asked_for(&self) -> Ended {
        info!("requested by signal: asking the Workload API again");
        Ended::Again
    }

    /// Publishes what was told.
    async fn take(&mut self, told: Told, timer: Option<&WallTimer>) -> Result<(), SourceFailure> {
        let Told { svid, ids, bundles } = told;
        let svid = svid.ok_or_else(|| SourceFailure::Answer(nobody(&ids)))?;
        memory::before_a_key();
        let (issued, id) = verify(svid, self.held.is_some()).map_err(SourceFailure::Answer)?;
        wait_for_start(&issued.svid, timer, &self.store, &self.force).await;
        let now = clock::now();
        let (others, flaws) = federation(&bundles, &id.domain(), &self.told.borrow().others, now);
        drop(bundles);
        if flaws != self.flaws {
            flaws.iter().for_each(|flaw| warn!("the Workload API's federated bundle {flaw}"));
            self.flaws = flaws;
        }
        let certificate = content(&issued.svid, &self.key).map_err(|error| SourceFailure::Answer(error.to_string()))?;
        self.publish(&issued, &id, others, certificate).await;
        self.published(&issued, &id, now);
        Ok(())
    }

    async fn publish(
        &self,
        issued: &Issued,
        id: &SpiffeId,
        others: Vec<(TrustDomain, TrustBundle)>,
        certificate: Content,
    ) {
        self.told.send_replace(Federation { own: Some(id.domain()), others });
        // They are taken up before this goes on.
        tokio::task::yield_now().await;
        self.roots.publish(issued, id.domain(), certificate).await;
        memory::look_again();
    }

    fn published(&mut self, issued: &Issued, id: &SpiffeId, now: i64) {
        let (serial, (begins, ends)) = (issued.svid.serial(), issued.svid.validity());
        // The same certificate may last longer under another anchor.
        self.store.lasts_until(CERTIFICATE, ends);
        self.shown.identify(id.as_str(), id.as_str());
        self.trouble.over().iter().for_each(|over| info!("{over}"));
        self.due = Some(match ends.saturating_sub(ends.saturating_sub(begins) / OVERDUE_SHARE) {
            due if due > now => due,
            _ => now.saturating_add((ends.saturating_sub(now) / 2).max(ASK_AGAIN)),
        });
        let version = self.shown.version();
        let is_new = version != self.version;
        self.shown.told(now, is_new);
        if is_new {
            if issued.for_any_use {
                warn!("the certificate has no extended key usage: Envoy accepts it, stricter peers may not");
            }
            let not_after = clock::rfc3339(ends);
            info!(identity = %id, serial, not_after, "received a certificate from the Workload API");
            (self.version, self.told_overdue) = (version, false);
            self.backoff.reset();
        }
        self.held = Some(Held { serial, life: (now.max(begins), ends) });
        self.hand_on(issued, id, now);
    }

    /// Hands on what is held, so that a successor serves it until the Workload API answers.
    fn hand_on(&self, issued: &Issued, id: &SpiffeId, now: i64) {
        let parts = |room: usize| {
            let chain = issued.svid.chain().ok()?;
            let (due, leaving) = (self.due.unwrap_or(now), self.roots.leaving());
            let (chain, anchors, patience) = (&*chain.pem, &issued.roots, Vec::new());
            Parts { received: now, due, id, patience, chain, anchors, leaving }.write(room)
        };
        generation::hand_on(&self.shown, parts);
    }

    /// Serves what a crashed process had, if we are its successor.
    async fn resume(&mut self) {
        let now = clock::now();
        let Some((read, certificate)) = generation::inherited(self.api.wanted(), &self.key, now) else { return };
        let Generation { id, issued, leaving, .. } = read;
        self.roots.still_leaving(leaving);
        self.publish(&issued, &id, Vec::new(), certificate).await;
        let not_after = clock::rfc3339(issued.svid.validity().1);
        let serial = issued.svid.serial();
        info!(identity = %id, serial, not_after, "still serving the certificate from before the crash");
        self.version = self.shown.version();
        self.published(&issued, &id, now);
    }

    /// What is held was to be renewed by now.
    fn overdue(&mut self) {
        let ends = self.held.as_ref().map(|held| held.life.1).filter(|_| !self.told_overdue);
        if let Some(ends) = ends {
            self.told_overdue = true;
            let ends = clock::rfc3339(ends);
            warn!("the Workload API has not renewed the certificate, which expires at {ends}; asking again");
        }
    }

    fn call_failed(&self, called: Instant, failure: SourceFailure) -> Ended {
        self.called(called, Some((failure.to_string(), failure.reached())));
        Ended::Failed(failure)
    }

    fn called(&self, called: Instant, error: Option<(String, bool)>) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.called(clock::now(), called.elapsed(), error, None);
        }
    }

    fn failed(&mut self, failure: &SourceFailure, wait: Duration, next: &str) {
        let (now, text) = (clock::now(), failure.to_string());
        match self.trouble.failed(&text, self.held.as_ref(), now, next) {
            Some((Level::WARN, text)) => warn!("{text}"),
            Some((_, text)) => error!("{text}"),
            None => {}
        }
        let next = now.saturating_add(wait.as_secs() as i64);
        let (reason, reached) = (failure.reason(), failure.reached());
        self.shown.failed(next, status::Trouble { since: now, reason, text, reached });
    }
}

fn left(ends: i64) -> Duration {
    Duration::from_secs(ends.saturating_sub(clock::now()).max(0) as u64)
}

async fn due(timer: Option<&WallTimer>, moment: Option<i64>, store: &SecretStore) {
    match timer.zip(moment) {
        Some((timer, moment)) => {
            // A clock that is set may make what is held valid again.
            timer.until(clock::deadline(moment), || store.look_again()).await;
        }
        None => future::pending().await,
    }
}
