//! The one loop that keeps a certificate fresh.

mod resuming;
mod telling;
mod waiting;

use std::{future, io, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    backoff::Backoff,
    caller::Request,
    cure::Before,
    failover::Failover,
    failure::Failure,
    mounted::Mounted,
    patience::{answer_within, bearable},
    publisher::{Publisher, content},
    schedule::renewal_after,
    settings::RenewalSettings,
    trouble::Outage,
};
pub(super) use waiting::{check_start, random, wait_for_start};

use crate::{
    clock::{self, WallTimer},
    config::{CaConfig, RotationConfig},
    identity::{
        Answer, BearerToken, CertificateRequest, KeySpec, PeerTrust, SpiffeId, TokenError, TrustBundle, TrustDomain,
        X509Svid,
    },
    memory,
    status::Workload,
    store::{SecretStore, consumers_first},
};

/// Keys and CSRs that the CA has not answered yet, by the identity that they are for.
type Requests = Vec<(SpiffeId, Arc<CertificateRequest>)>;

/// Where the loop gets its token.
pub trait TokenSource: Send {
    /// The token as it is now, looked at locally at `now` (Unix seconds).
    ///
    /// # Errors
    /// Why there is none that could be used.
    fn read(&mut self, now: i64) -> Result<Arc<BearerToken>, TokenError>;

    /// Whether the token is always the same one.
    const FIXED: bool;

    /// Waits until [`TokenSource::read`] may have another answer. `false` when it never will.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

/// The end of a renewal loop: the credentials are used up for good.
#[derive(Debug, thiserror::Error)]
pub enum RenewalEnded {
    /// The token cannot be used any more, and no other one will come.
    #[error("{0}")]
    Token(String),
    /// Nobody looks at the secrets any more, and nobody will: they belong to one request's token.
    #[error("the token is no longer in use")]
    Unused,
}

/// The one loop that keeps a workload's certificate fresh. How often it asks the CA depends on time alone.
pub struct Renewal<T> {
    /// The identity of what is held, or of what is asked for as long as nothing is.
    identity: SpiffeId,
    /// The one in the trust domain of the configuration.
    configured: SpiffeId,
    /// The trust domain that the last attempt asked for.
    asked: TrustDomain,
    /// When that was, and what it depended on was like.
    tried: Instant,
    before: Before,
    /// How often in a row a wait was ended by what the failure hung on.
    cures: u32,
    ca: Arc<CaConfig>,
    key: KeySpec,
    rotation: RotationConfig,
    failover: Failover,
    tokens: T,
    store: Arc<SecretStore>,
    roots: Arc<Publisher>,
    file_roots: watch::Receiver<PeerTrust>,
    mounted: Option<Mounted>,
    force: Arc<Notify>,
    timer: WallTimer,
    held: Option<X509Svid>,
    /// The trust anchors that came with it.
    answered: TrustBundle,
    trouble: Outage,
    shown: Arc<Workload>,
    /// When what is held was issued, Unix seconds.
    received: i64,
    /// When that is to be renewed, Unix seconds.
    due: i64,
    /// Why the identity that is wanted could not be had, while what is held was renewed.
    refused: Option<Failure>,
    backoff: Backoff,
    /// What the token of the last attempt says of itself.
    token: Option<String>,
}

impl<T: TokenSource> Renewal<T> {
    /// A loop that holds nothing yet.
    ///
    /// # Errors
    /// When the kernel has no timer for us, or the CA's name cannot stand in a request.
    pub fn new(settings: &RenewalSettings, identity: SpiffeId, tokens: T, store: Arc<SecretStore>) -> io::Result<Self> {
        let asked = settings.file_roots.borrow().own.clone();
        let (identity, configured) = (identity.in_domain(&asked), identity);
        let shown = settings.status.workload(identity.to_string(), &store);
        let mounted = settings.mounted.clone();
        let config = &settings.rotation.roots;
        let roots = Publisher::new(Arc::clone(&store), config, mounted.is_some(), Arc::clone(&shown));
        let roots = Arc::new(roots);
        let beside =
            |files| Mounted::beside(settings, files, Arc::clone(&roots), Arc::clone(&store), Arc::clone(&shown));
        Ok(Self {
            mounted: mounted.map(beside),
            shown,
            identity,
            configured,
            asked,
            tried: Instant::now(),
            before: Before::default(),
            cures: 0,
            ca: Arc::clone(&settings.ca),
            key: settings.key,
            rotation: settings.rotation.clone(),
            failover: Failover::new(&settings.ca, &settings.status).map_err(io::Error::other)?,
            tokens,
            roots,
            store,
            file_roots: settings.file_roots.clone(),
            force: Arc::clone(&settings.force),
            timer: WallTimer::new()?,
            held: None,
            answered: TrustBundle::default(),
            trouble: Outage::default(),
            token: None,
            received: 0,
            due: i64::MIN,
            refused: None,
            backoff: Backoff::default(),
        })
    }

    /// Runs for as long as the credentials can be renewed; with a projected token that is for ever.
    pub async fn run(mut self) -> RenewalEnded {
        let (roots, file_roots, mounted) = (Arc::clone(&self.roots), self.file_roots.clone(), self.mounted.take());
        let mounted = async {
            match mounted {
                Some(mounted) => mounted.follow().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First, so that what the files hold is known when the CA answers.
            never = roots.follow(file_roots) => match never {},
            never = mounted => match never {},
            ended = self.renew_for_ever() => ended,
        }
    }

    async fn renew_for_ever(&mut self) -> RenewalEnded {
        match self.resume().await {
            Some(wait) => {
                let force = Arc::clone(&self.force);
                self.sleep_until_renewal(wait, force.notified()).await;
            }
            None => self.be_patient().await,
        }
        loop {
            let svid = match self.renew().await {
                Ok(svid) => svid,
                Err(ended) => return ended,
            };
            let ((not_before, not_after), now) = (svid.validity(), clock::now());
            // A clock that is behind must not make the life look longer than it is.
            let wait = renewal_after(&self.rotation.schedule, not_after, now.max(not_before), random());
            let serial = svid.serial();
            self.due = now.saturating_add(wait.as_secs() as i64);
            self.shown.renewed(now, self.due);
            (self.held, self.received) = (Some(svid), now);
            self.hand_on_patience(Duration::ZERO, false);
            self.hand_on();
            // From here on Envoy may have the certificate, so a request for another one must be heard.
            let force = Arc::clone(&self.force);
            let forced = force.notified();
            // Envoy does not wait for the log. It does for the end of the connection to the CA, which holds the key that retires.
            consumers_first().await;
            info!(
                identity = %self.identity,
                serial,
                not_after = clock::rfc3339(not_after),
                renewal_in_s = wait.as_secs(),
                "certificate issued"
            );
            self.warn_of_short_life(Duration::from_secs((not_after - now).max(0) as u64));
            match self.refused.take() {
                None => self.sleep_until_renewal(wait, forced).await,
                Some(failure) => {
                    if let Err(ended) = self.recover(&failure, forced).await {
                        return ended;
                    }
                }
            }
            if T::FIXED && self.store.consumers() == 0 {
                return RenewalEnded::Unused;
            }
        }
    }

    /// Asks until there is a new certificate, and publishes it. Keys and CSRs stay the same over the retries.
    async fn renew(&mut self) -> Result<X509Svid, RenewalEnded> {
        let mut requests = Requests::new();
        let force = Arc::clone(&self.force);
        loop {
            // Listened to from now on, so that a signal that comes during the attempt is not lost when it fails.
            let forced = force.notified();
            match self.attempt(&mut requests).await {
                Ok(svid) => return Ok(svid),
                Err(failure) => self.recover(&failure, forced).await?,
            }
        }
    }

    /// One attempt in the trust domain that is wanted now. Where that fails and what is held is due, or nothing is held
    /// and the CA refuses it, another one under the identity that is held or configured.
    async fn attempt(&mut self, requests: &mut Requests) -> Result<X509Svid, Failure> {
        self.asked = self.file_roots.borrow().own.clone();
        (self.tried, self.before) = (Instant::now(), Before::now(&self.ca));
        let wanted = self.wanted();
        if self.held.is_none() {
            self.identity = wanted.clone();
        }
        self.shown.identify(self.identity.as_str(), wanted.as_str());
        self.hand_on_for_an_attempt();
        requests.retain(|(id, _)| [&self.identity, &self.configured, &wanted].contains(&id));
        let failure = match self.attempt_as(&wanted, requests).await {
            Ok(svid) => {
                if self.identity != wanted {
                    info!("identity changed to {wanted} (was {})", self.identity);
                    self.identity = wanted;
                    self.shown.identify(self.identity.as_str(), self.identity.as_str());
                }
                self.trouble.over().iter().for_each(|over| info!("{over}"));
                self.backoff.reset();
                self.cures = 0;
                return Ok(svid);
            }
            Err(failure) => failure,
        };
        let before = match &self.held {
            // What is held must not end before the CA knows us by the new name.
            Some(_) if failure.class().may_be_for_the_name && clock::now() >= self.due => self.identity.clone(),
            // Who starts while the CA does not know it yet is not worse off than those who run.
            None if failure.class().is_refusal => self.configured.clone(),
            _ => return Err(failure),
        };
        if before == wanted {
            return Err(failure);
        }
        match self.attempt_as(&before, requests).await {
            Ok(svid) => {
                self.shown.identify(before.as_str(), wanted.as_str());
                self.identity = before;
                self.refused = Some(failure);
                Ok(svid)
            }
            Err(other) => Err(Failure::Both { wanted: Box::new(failure), before: Box::new(other) }),
        }
    }

    /// The identity that we are to have.
    fn wanted(&self) -> SpiffeId {
        self.identity.in_domain(&self.asked)
    }

    /// Makes key and CSR for this identity, unless they are there, however long memory or randomness are missing.
    async fn request(&mut self, id: &SpiffeId, requests: &mut Requests) -> Arc<CertificateRequest> {
        if let Some((_, request)) = requests.iter().find(|(of, _)| of == id) {
            return Arc::clone(request);
        }
        let mut backoff = Backoff::default();
        memory::before_a_key();
        loop {
            match CertificateRequest::make(&self.key, id).await.map(Arc::new) {
                Ok(request) => {
                    requests.push((id.clone(), Arc::clone(&request)));
                    return request;
                }
                Err(error) => {
                    let (failure, wait) = (Failure::Key(error), backoff.next(random()));
                    self.failed(&failure, wait, &format!("retrying in {:.1} s", wait.as_secs_f64()));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.force.notified() => info!("renewal requested by signal"),
                    }
                }
            }
        }
    }

    async fn attempt_as(&mut self, id: &SpiffeId, requests: &mut Requests) -> Result<X509Svid, Failure> {
        let request = self.request(id, requests).await;
        let now = clock::now();
        let token = self.tokens.read(now);
        self.token = token.as_ref().ok().map(|token| token.describe(now));
        self.shown.attempts(now, token.as_ref().ok().and_then(|token| token.expires()));
        // An expired certificate would only be refused, and one of another identity would speak for that one.
        let own = self.held.as_ref().filter(|held| held.validity().1 > now && *id == self.identity);
        let token = token.as_deref().map_err(Clone::clone);
        let holds = self.held.as_ref().is_some_and(|held| held.validity().1 > now);
        let verify = |answer: Answer| {
            let issued = X509Svid::verify(answer, request.key(), id, clock::now())?;
            check_start(&issued.svid, holds).map(|()| issued)
        };
        let answer = answer_within(self.ca.answer_timeout, self.ca.timeout, self.left());
        let question = Request { csr_pem: request.csr_pem(), id, token, own, answer };
        let mut issued = self.failover.attempt(&question, bearable(self.left()), verify).await?;
        // Peers have the anchors of the files as well.
        self.answered = issued.roots.clone();
        // Only what changes from now on may be another way.
        self.file_roots.mark_unchanged();
        if issued.svid.ends_before_its_leaf() {
            issued.svid.look_at_paths(&self.anchors(), clock::now());
        }
        wait_for_start(&issued.svid, Some(&self.timer), &self.store, &self.force).await;
        let certificate = content(&issued.svid, &self.key)?;
        if issued.for_any_use {
            warn!("the CA's certificate has no extended key usage: Envoy accepts it, stricter peers may not");
        }
        self.roots.publish(&issued, id.domain(), certificate).await;
        memory::look_again();
        Ok(issued.svid)
    }
}
