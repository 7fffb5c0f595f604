use std::{
    convert::Infallible,
    future,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tonic::Code;
use tracing::{Level, error, info, warn};

use super::{
    backoff::Backoff,
    patience::{Setback, Strain, wait_after},
    publisher::Publisher,
    renewal::{HELD_UNTIL_VALID, check_start, random},
    settings::RenewalSettings,
    trouble::{Held, Trouble},
};
use crate::{
    budget,
    clock::{self, WallTimer},
    config::{FileCheck, WorkloadApiSource},
    files::Changes,
    identity::{Answer, Issued, KeySpec, PeerTrust, PemError, SpiffeId, SvidError, TrustBundle, TrustDomain, X509Svid},
    memory,
    spiffe::{SpiffeError, Svid, Told, WorkloadApi},
    status::{self, Endpoint, Reason, Workload},
    store::{Content, SecretStore},
};

/// How long the Workload API may take to open a stream.
const REACHED_WITHIN: Duration = Duration::from_secs(10);
/// How long it may say nothing on it while nothing is held, before that is told.
const SILENT: Duration = Duration::from_secs(10);
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
    check: FileCheck,
    force: Arc<Notify>,
    roots: Arc<Publisher>,
    told: watch::Sender<Federation>,
    shown: Arc<Workload>,
    trouble: Trouble,
    backoff: Backoff,
    held: Option<Held>,
    /// When (Unix seconds) what is held is asked for again, and whether that was told.
    due: Option<i64>,
    told_overdue: bool,
}

/// What it tells of trust domains.
#[derive(Clone, Debug, Default)]
struct Federation {
    /// That of the workload, once that is known.
    own: Option<TrustDomain>,
    /// The others, with their anchors.
    others: Vec<(TrustDomain, TrustBundle)>,
}

/// Why it has brought nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Api(#[from] SpiffeError),
    #[error("the Workload API has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the Workload API's answer was rejected: {0}")]
    Answer(String),
}

impl Failure {
    fn reason(&self) -> Reason {
        match self {
            Self::Api(SpiffeError::Unreachable { .. }) => Reason::Connect,
            Self::Api(SpiffeError::Refused { code: Code::PermissionDenied | Code::Unauthenticated, .. }) => {
                Reason::Unauthenticated
            }
            Self::Api(SpiffeError::Refused { .. }) => Reason::Refused,
            Self::Api(SpiffeError::Stranger(_) | SpiffeError::Ended | SpiffeError::Broken(_)) => Reason::Transport,
            Self::Silent(_) => Reason::Deadline,
            Self::Api(SpiffeError::Message(_)) | Self::Answer(_) => Reason::Answer,
        }
    }

    /// Whether somebody was there.
    fn reached(&self) -> bool {
        !matches!(self, Self::Api(SpiffeError::Unreachable { .. }))
    }
}

/// What became of a stream.
enum Ended {
    Failed(Failure),
    /// It is to be opened again.
    Again,
}

impl Spiffe {
    /// Serves `store` from this Workload API.
    pub fn new(settings: &RenewalSettings, source: WorkloadApiSource, store: &Arc<SecretStore>) -> Self {
        let WorkloadApiSource { socket, id } = source;
        let known = id.as_ref().map_or_else(|| "not known yet".to_owned(), ToString::to_string);
        let shown = settings.status.workload(known, store);
        let roots = Publisher::new(Arc::clone(store), &settings.rotation.roots, false, Arc::clone(&shown));
        Self {
            endpoint: settings.status.endpoint(&address_of(&socket)),
            api: WorkloadApi::new(socket, id),
            key: settings.key,
            check: settings.files.check,
            force: Arc::clone(&settings.force),
            roots: Arc::new(roots),
            told: watch::Sender::default(),
            shown,
            trouble: Trouble::default(),
            backoff: Backoff::default(),
            held: None,
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
            .inspect_err(|error| warn!("a certificate that the Workload API does not renew is not noticed: {error}"))
            .ok();
        let force = Arc::clone(&self.force);
        loop {
            // Listened to from now on, so that a signal that comes during the attempt is not lost when it fails.
            let forced = force.notified();
            tokio::pin!(forced);
            let opened = Instant::now();
            let failure = tokio::select! {
                biased;
                () = &mut forced => {
                    info!("requested by signal: asking the Workload API again");
                    continue;
                }
                ended = self.watch(timer.as_ref()) => match ended {
                    Ended::Failed(failure) => failure,
                    Ended::Again => continue,
                },
            };
            if opened.elapsed() >= LASTS {
                self.backoff.reset();
            }
            let left = self.held.as_ref().map(|held| left(held.life.1));
            let setback = Setback::Failed { strain: Strain::Away, asked: None };
            let wait = wait_after(setback, left.filter(|left| !left.is_zero()), &mut self.backoff, random());
            self.failed(&failure, wait, &format!("retrying in {:.1} s", wait.as_secs_f64()));
            let appears = async {
                // Only where it is not there: others write beside it.
                if matches!(failure, Failure::Api(SpiffeError::Unreachable { .. })) && !self.api.socket().exists() {
                    Changes::new(vec![self.api.socket().to_owned()], Duration::ZERO, self.check).next().await;
                } else {
                    future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                () = &mut forced => info!("requested by signal: asking the Workload API again"),
                () = appears => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes what comes on one stream.
    async fn watch(&mut self, timer: Option<&WallTimer>) -> Ended {
        let (called, opened) = (Instant::now(), clock::now());
        self.shown.attempts(opened, None);
        let mut updates = match timeout(REACHED_WITHIN, self.api.watch()).await {
            Ok(Ok(updates)) => updates,
            Ok(Err(error)) => return self.call_failed(called, error.into()),
            Err(_) => return self.call_failed(called, Failure::Silent(REACHED_WITHIN)),
        };
        let mut answered = false;
        let mut silent = self.held.is_none();
        loop {
            let told = tokio::select! {
                biased;
                told = updates.next() => told,
                () = at(timer, self.due), if answered => {
                    self.overdue();
                    return Ended::Again;
                }
                () = sleep(SILENT), if silent && !answered => {
                    silent = false;
                    self.failed(&Failure::Silent(SILENT), Duration::ZERO, "waiting on the open stream");
                    continue;
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
            if let Err(failure) = self.take(told).await {
                return Ended::Failed(failure);
            }
        }
    }

    /// Publishes what was told.
    async fn take(&mut self, told: Told) -> Result<(), Failure> {
        let Told { svid, ids, bundles } = told;
        let svid = svid.ok_or_else(|| Failure::Answer(nobody(&ids)))?;
        memory::before_a_key();
        let (issued, id) = verify(svid, self.held.is_some()).await.map_err(Failure::Answer)?;
        let now = clock::now();
        let (others, flaws) = federation(&bundles, &id.domain(), now);
        drop(bundles);
        flaws.iter().for_each(|flaw| warn!("among the Workload API's federated bundles, {flaw}"));
        let (own, domain) = (Some(id.domain()), id.domain());
        self.told.send_replace(Federation { own, others });
        // They are taken up before this goes on.
        tokio::task::yield_now().await;
        let error = |error| Failure::Answer(SvidError::from(error).to_string());
        let certificate = Content::TlsCertificate {
            chain: issued.svid.chain().map_err(error)?,
            key: issued.svid.key_pem(&self.key).map_err(error)?,
        };
        self.roots.publish(&issued, domain, certificate).await;
        memory::look_again();
        self.published(&issued, &id, now);
        Ok(())
    }

    fn published(&mut self, issued: &Issued, id: &SpiffeId, now: i64) {
        let (serial, (begins, ends)) = (issued.svid.serial(), issued.svid.validity());
        self.shown.identify(id.as_str(), id.as_str());
        self.trouble.over().iter().for_each(|over| info!("{over}"));
        let due = match ends.saturating_sub(ends.saturating_sub(begins) / OVERDUE_SHARE) {
            due if due > now => due,
            _ => now.saturating_add((ends.saturating_sub(now) / 2).max(ASK_AGAIN)),
        };
        self.due = Some(due);
        if self.held.as_ref().is_some_and(|held| held.serial == serial) {
            self.shown.confirmed(due);
            return;
        }
        if issued.for_any_use {
            warn!("the certificate has no extended key usage: Envoy accepts it, stricter peers may not");
        }
        info!(identity = %id, serial, not_after = clock::rfc3339(ends), "received a certificate from the Workload API");
        self.shown.renewed(now, due);
        self.held = Some(Held { serial, life: (now.max(begins), ends) });
        self.told_overdue = false;
        self.backoff.reset();
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

    fn call_failed(&self, called: Instant, failure: Failure) -> Ended {
        self.called(called, Some((failure.to_string(), failure.reached())));
        Ended::Failed(failure)
    }

    fn called(&self, called: Instant, error: Option<(String, bool)>) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.called(clock::now(), called.elapsed(), error, None);
        }
    }

    fn failed(&mut self, failure: &Failure, wait: Duration, next: &str) {
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

/// How its address is shown.
pub fn address_of(socket: &std::path::Path) -> String {
    format!("unix:{}", socket.display())
}

/// Keeps what is trusted up to date, from files and as told.
async fn merge(
    mut files: watch::Receiver<PeerTrust>,
    mut told: watch::Receiver<Federation>,
    both: &watch::Sender<PeerTrust>,
) -> Infallible {
    loop {
        let now = merged(&files.borrow_and_update(), &told.borrow_and_update());
        both.send_if_modified(|held| {
            let changed = !held.is_same(&now);
            *held = now;
            changed
        });
        tokio::select! {
            Ok(()) = files.changed() => {}
            Ok(()) = told.changed() => {}
            else => future::pending().await,
        }
    }
}

/// Files first: whoever names a trust domain in the configuration means it.
fn merged(files: &PeerTrust, told: &Federation) -> PeerTrust {
    let mut both = files.clone();
    if let Some(own) = &told.own {
        both.own.clone_from(own);
    }
    both.domains.extend(told.others.iter().cloned());
    both
}

/// What is told of other trust domains, and what of it cannot be used.
fn federation(
    bundles: &[(Vec<u8>, Vec<u8>)],
    own: &TrustDomain,
    now: i64,
) -> (Vec<(TrustDomain, TrustBundle)>, Vec<String>) {
    let (mut others, mut flaws) = (Vec::new(), Vec::new());
    for (number, (name, der)) in bundles.iter().enumerate() {
        let text = String::from_utf8_lossy(name);
        // Both forms are found.
        let Ok(domain) = text.strip_prefix("spiffe://").unwrap_or(&text).parse::<TrustDomain>() else {
            flaws.push(format!("the name of number {} is no trust domain; skipped", number + 1));
            continue;
        };
        if domain == *own {
            continue;
        }
        match TrustBundle::from_der(der, now, budget::has_room_for_anchor) {
            Ok((bundle, bad)) => {
                flaws.extend((!bad.is_empty()).then(|| format!("in that of {domain}, {bad}")));
                others.push((domain, bundle));
            }
            Err(error) => flaws.push(format!("that of {domain}: {}; skipped", in_der(&error))),
        }
    }
    others.sort_by(|(one, _), (other, _)| one.cmp(other));
    (others, flaws)
}

/// The certificate and its anchors, if they hold what the Workload API says of them, once their time has come.
async fn verify(svid: Svid, holds: bool) -> Result<(Issued, SpiffeId), String> {
    let Svid { id, chain, key, bundle } = svid;
    let id = str::from_utf8(&id).ok().and_then(SpiffeId::parse).ok_or("its spiffe_id is no SPIFFE ID with a path")?;
    for (what, content) in [("x509_svid", &*chain), ("x509_svid_key", key.bytes()), ("bundle", &*bundle)] {
        if content.is_empty() {
            return Err(format!("its {what} is empty"));
        }
    }
    let parsed = locked::read_pkcs8(key.bytes()).map_err(|_| "its private key cannot be parsed")?;
    drop(key);
    let answer = Answer::of_der(&chain, &bundle);
    drop((chain, bundle));
    let issued = X509Svid::verify(answer, &parsed, &id, clock::now()).map_err(|error| match error {
        SvidError::ForeignKey => "the private key does not belong to the certificate".to_owned(),
        SvidError::Element { position: 1, cause } => format!("its certificate chain: {}", in_der(&cause)),
        SvidError::Element { cause, .. } => format!("its bundle: {}", in_der(&cause)),
        error => error.to_string(),
    })?;
    let ((begins, _), now) = (issued.svid.validity(), clock::now());
    check_start(&issued.svid, holds).map_err(|error| error.to_string())?;
    if let wait @ 1..=HELD_UNTIL_VALID = begins.saturating_sub(now) {
        let (not_before, now) = (clock::rfc3339(begins), clock::rfc3339(now));
        info!(not_before, now, "holding back the certificate until it becomes valid");
        sleep(Duration::from_secs(wait as u64)).await;
    }
    Ok((issued, id))
}

/// What is wrong with certificates that came as DER.
fn in_der(error: &PemError) -> String {
    error.to_string().replace("PEM certificate", "certificate")
}

fn nobody(ids: &[String]) -> String {
    match ids.len() {
        0 => "it has no identity".to_owned(),
        _ => format!("SDS_SHIM_SPIFFE_ID is not among its identities: {}", ids.join(", ")),
    }
}

fn left(ends: i64) -> Duration {
    Duration::from_secs(ends.saturating_sub(clock::now()).max(0) as u64)
}

async fn at(timer: Option<&WallTimer>, moment: Option<i64>) {
    match timer.zip(moment) {
        Some((timer, moment)) => timer.at(UNIX_EPOCH + Duration::from_secs(moment.max(0) as u64)).await,
        None => future::pending().await,
    }
}
