use std::{
    future, io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, watch};
use tracing::{Level, debug, error, info, warn};

use super::{
    backoff::Backoff,
    failover::Failover,
    failure::Failure,
    mounted::Mounted,
    root_publisher::RootPublisher,
    schedule::{can_meet, renewal_after},
    trouble::{Held, Trouble},
};
use crate::{
    clock::{self, WallTimer},
    config::{CaConfig, FilesConfig, MountedFiles, RotationConfig},
    identity::{BearerToken, CertificateRequest, KeySpec, PeerTrust, SpiffeId, SvidError, TokenError, X509Svid},
    status::{Status, Workload},
    store::{CERTIFICATE, Content, SecretStore},
};

/// How long a token that cannot be used is left alone when its file does not change: the clock may have been wrong.
const TOKEN_RECHECK: Duration = Duration::from_secs(30);
/// The longest wait that a CA may ask for.
const LONGEST_REQUESTED_WAIT: Duration = Duration::from_secs(3600);
/// The least wait that a CA may ask for however little life is left.
const REQUESTED_WAIT: Duration = Duration::from_secs(30);
/// The back-off's bound however little life is left.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// How far in the future (seconds) a certificate may begin to be held until then. More means that a clock is wrong.
const HELD_UNTIL_VALID: i64 = 60;
/// Whoever verifies it may read a clock that ticks in steps of some milliseconds.
const COARSE_CLOCK: Duration = Duration::from_millis(100);

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
    #[error("nobody uses the token any more")]
    Unused,
}

/// What all renewal loops of the process have in common.
pub struct RenewalSettings {
    /// What keys are made.
    pub key: KeySpec,
    /// When to renew, and which roots are served.
    pub rotation: RotationConfig,
    /// How the CA is reached.
    pub ca: Arc<CaConfig>,
    /// What peers are verified with, as the files have it now.
    pub file_roots: watch::Receiver<PeerTrust>,
    /// What is mounted, to be served until the CA has issued.
    pub mounted: Option<MountedFiles>,
    /// How files are followed.
    pub files: FilesConfig,
    /// A notification renews at once.
    pub force: Arc<Notify>,
    /// Where everybody may see how it goes.
    pub status: Arc<Status>,
}

/// The one loop that keeps a workload's certificate fresh. How often it asks the CA depends on time alone.
pub struct Renewal<T> {
    identity: SpiffeId,
    key: KeySpec,
    rotation: RotationConfig,
    failover: Failover,
    tokens: T,
    store: Arc<SecretStore>,
    roots: Arc<RootPublisher>,
    file_roots: watch::Receiver<PeerTrust>,
    mounted: Option<Mounted>,
    force: Arc<Notify>,
    timer: WallTimer,
    held: Option<X509Svid>,
    trouble: Trouble,
    shown: Arc<Workload>,
    /// When what is held was issued, Unix seconds.
    received: i64,
    /// What the token of the last attempt says of itself.
    token: Option<String>,
}

impl<T: TokenSource> Renewal<T> {
    /// A loop that holds nothing yet.
    ///
    /// # Errors
    /// When the kernel has no timer for us, or the CA's name cannot stand in a request.
    pub fn new(settings: &RenewalSettings, identity: SpiffeId, tokens: T, store: Arc<SecretStore>) -> io::Result<Self> {
        let shown = settings.status.workload(identity.to_string(), &store);
        let mounted = settings.mounted.clone();
        let roots = RootPublisher::new(Arc::clone(&store), &settings.rotation.roots, mounted.is_some());
        let roots = Arc::new(roots);
        let beside =
            |files| Mounted::beside(settings, files, Arc::clone(&roots), Arc::clone(&store), Arc::clone(&shown));
        Ok(Self {
            mounted: mounted.map(beside),
            shown,
            identity,
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
            trouble: Trouble::default(),
            token: None,
            received: 0,
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
        loop {
            let svid = match self.renew().await {
                Ok(svid) => svid,
                Err(ended) => return ended,
            };
            let ((not_before, not_after), now) = (svid.validity(), clock::now());
            // A clock that is behind must not make the life look longer than it is.
            let wait = renewal_after(&self.rotation.schedule, not_after, now.max(not_before), random());
            info!(
                identity = %self.identity,
                serial = svid.serial(),
                not_after = clock::rfc3339(not_after),
                renewal_in_s = wait.as_secs(),
                "a certificate was issued"
            );
            self.shown.renewed(now, now.saturating_add(wait.as_secs() as i64));
            self.warn_of_short_life(Duration::from_secs((not_after - now).max(0) as u64));
            (self.held, self.received) = (Some(svid), now);
            self.sleep_until_renewal(wait).await;
            if T::FIXED && self.store.consumers() == 0 {
                return RenewalEnded::Unused;
            }
        }
    }

    /// Asks until there is a new certificate, and publishes it. Key and CSR stay the same over the retries.
    async fn renew(&mut self) -> Result<X509Svid, RenewalEnded> {
        let request = self.request().await;
        let mut backoff = Backoff::default();
        let force = Arc::clone(&self.force);
        loop {
            // Listened to from now on, so that a signal that comes during the attempt is not lost when it fails.
            let forced = force.notified();
            let failure = match self.attempt(&request).await {
                Ok(svid) => {
                    self.trouble.over().iter().for_each(|over| info!("{over}"));
                    return Ok(svid);
                }
                Err(failure) => failure,
            };
            if T::FIXED && failure.token_is_final(self.held.is_some()) {
                self.failed(&failure, Duration::ZERO, "nothing more is tried with this token");
                return Err(RenewalEnded::Token(failure.to_string()));
            }
            let wait = self.wait_after(&failure, &mut backoff);
            match failure.needs_token() {
                true => self.failed(&failure, wait, "the token's file is watched, and read again within 30 s"),
                false => self.failed(&failure, wait, &format!("tried again in {:.1} s", wait.as_secs_f64())),
            }
            debug!(wait_ms = wait.as_millis() as u64, "waiting before the next attempt");
            tokio::select! {
                // Nor does an outage keep the streams from what is valid again once the clock is set right.
                () = self.timer.pause(wait, || self.store.look_again()) => {}
                () = forced => {
                    info!("a renewal was asked for");
                    self.failover.forget_patience();
                }
                true = self.tokens.changed(), if failure.concerns_token() => backoff.reset(),
            }
        }
    }

    /// Tells a failure, in the log and in public, with what is done after `wait`.
    fn failed(&mut self, failure: &Failure, wait: Duration, next: &str) {
        self.tell(failure, next);
        let now = clock::now();
        self.shown.failed(now, now.saturating_add(wait.as_secs() as i64), failure.reason(), self.explain(failure));
    }

    /// Tells a failure, with what is served meanwhile and what is done next.
    fn tell(&mut self, failure: &Failure, next: &str) {
        // CAs backdate NotBefore: what counts is the life that it had here.
        let held = match &self.held {
            Some(held) => Some(Held { serial: held.serial(), life: (self.received, held.validity().1) }),
            None => self.mounted_certificate(),
        };
        let Some((level, text)) = self.trouble.failed(&self.explain(failure), held.as_ref(), clock::now(), next) else {
            return;
        };
        match held.map(|held| (held.serial, clock::rfc3339(held.life.1))) {
            Some((serial, not_after)) if level == Level::ERROR => error!(serial, not_after, "{text}"),
            Some((serial, not_after)) => warn!(serial, not_after, "{text}"),
            None => error!("{text}"),
        }
    }

    /// The mounted certificate that is served while the CA has not issued any.
    fn mounted_certificate(&self) -> Option<Held> {
        let secrets = self.shown.secrets();
        let leaf = secrets.get(CERTIFICATE)?.facts().first()?;
        Some(Held { serial: leaf.serial.clone(), life: (leaf.not_before, leaf.not_after) })
    }

    /// A failure in words. A CA says of a token that it does not accept nothing but that, so we say what we know.
    fn explain(&self, failure: &Failure) -> String {
        match (failure, &self.token) {
            (Failure::Attempt(error), Some(token)) if error.is_authentication() => {
                format!(
                    "{failure}; {token}: check that the CA knows its issuer, wants this audience and has the same time"
                )
            }
            _ => failure.to_string(),
        }
    }

    /// How long to leave the CA alone after a failure.
    fn wait_after(&self, failure: &Failure, backoff: &mut Backoff) -> Duration {
        let left = self.left();
        // A short certificate must not lapse in a wait between two attempts.
        let most = if left.is_zero() { Duration::MAX } else { (left / 4).max(SHORT_WAIT) };
        let Failure::Attempt(error) = failure else { return backoff.next_within(most, random()) };
        if error.needs_token() {
            return TOKEN_RECHECK;
        }
        if error.is_overload() && error.retry_after().is_none() {
            backoff.exhaust();
        }
        // On top of the wait that is asked for, so that all who were told the same do not come back together.
        let wait = backoff.next_within(most, random());
        let Some(asked) = error.retry_after() else { return wait };
        // Nor may a CA that asks for patience make the certificate lapse.
        asked.min(self.bearable()) + wait
    }

    /// The longest wait that a CA may ask for now.
    fn bearable(&self) -> Duration {
        match self.held {
            Some(_) => (self.left() / 2).max(REQUESTED_WAIT).min(LONGEST_REQUESTED_WAIT),
            None => LONGEST_REQUESTED_WAIT,
        }
    }

    /// The life that is left of what is held.
    fn left(&self) -> Duration {
        let left = self.held.as_ref().map_or(0, |held| held.validity().1.saturating_sub(clock::now()).max(0));
        Duration::from_secs(left as u64)
    }

    /// Makes the key and the CSR, however long memory or randomness are missing.
    async fn request(&mut self) -> CertificateRequest {
        let mut backoff = Backoff::default();
        loop {
            match CertificateRequest::new(&self.key, &self.identity) {
                Ok(request) => return request,
                Err(error) => {
                    let (failure, wait) = (Failure::Key(error), backoff.next(random()));
                    self.failed(&failure, wait, &format!("tried again in {:.1} s", wait.as_secs_f64()));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.force.notified() => info!("a renewal was asked for"),
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, request: &CertificateRequest) -> Result<X509Svid, Failure> {
        let now = clock::now();
        let token = self.tokens.read(now);
        self.token = token.as_ref().ok().map(|token| token.describe(now));
        self.shown.attempts(now, token.as_ref().ok().and_then(|token| token.expires()));
        // An expired certificate would only be refused.
        let own = self.held.as_ref().filter(|held| held.validity().1 > now);
        let token = token.as_deref().map_err(Clone::clone);
        let bearable = self.bearable();
        let answer = self.failover.attempt(request.csr_pem(), token, own, bearable).await?;
        let verified = X509Svid::verify(&answer.chain, request.key(), &self.identity, clock::now());
        let issued = verified.and_then(|issued| self.check_start(&issued.svid).map(|()| issued));
        let issued = issued.inspect_err(|_| self.failover.distrust(answer.from))?;
        self.wait_for_start(&issued.svid).await;
        let certificate = Content::TlsCertificate {
            chain: issued.svid.chain_pem().map_err(SvidError::from)?,
            key: issued.svid.key_pem(&self.key).map_err(SvidError::from)?,
        };
        self.roots.publish(&issued, certificate).await.map_err(SvidError::from)?;
        Ok(issued.svid)
    }

    /// Refuses a certificate that begins too far in the future, unless it is all that we could have.
    fn check_start(&self, svid: &X509Svid) -> Result<(), SvidError> {
        let ((not_before, not_after), now) = (svid.validity(), clock::now());
        if not_before.saturating_sub(now) <= HELD_UNTIL_VALID {
            return Ok(());
        }
        if self.held.as_ref().is_some_and(|held| held.validity().1 > now) {
            return Err(SvidError::Time { not_before, not_after, now });
        }
        warn!(
            not_before = clock::rfc3339(not_before),
            now = clock::rfc3339(now),
            "the certificate begins in the future: the clock here or the CA's is wrong; it is served nevertheless"
        );
        Ok(())
    }

    /// Holds a certificate back whose time comes within a minute; the old one is served meanwhile.
    async fn wait_for_start(&self, svid: &X509Svid) {
        let ((not_before, _), now) = (svid.validity(), clock::now());
        if (1..=HELD_UNTIL_VALID).contains(&not_before.saturating_sub(now)) {
            let (from, now) = (clock::rfc3339(not_before), clock::rfc3339(now));
            info!(not_before = from, now, "the certificate is held until it is valid");
            tokio::select! {
                () = self.until(UNIX_EPOCH + Duration::from_secs(not_before as u64) + COARSE_CLOCK) => {}
                // A clock that was set back meanwhile would make it wait for hours.
                () = tokio::time::sleep(Duration::from_secs(HELD_UNTIL_VALID as u64)) => {}
                () = self.force.notified() => info!("a renewal was asked for: the certificate is not held any longer"),
            }
        }
    }

    /// Tells when the availability target cannot be met.
    fn warn_of_short_life(&mut self, left: Duration) {
        match self.rotation.schedule.availability_target {
            Some(target) if !can_meet(target, left) => warn!(
                left_s = left.as_secs(),
                target_s = target.as_secs(),
                "the CA's certificates live too short for SDS_SHIM_AVAILABILITY_TARGET"
            ),
            _ => {}
        }
    }

    async fn sleep_until_renewal(&self, wait: Duration) {
        debug!(arena_used = locked::usage().used, "waiting for the renewal");
        tokio::select! {
            () = self.until(clock::wall_clock() + wait) => {}
            () = self.force.notified() => info!("a renewal was asked for"),
        }
    }

    /// Waits until the wall clock shows this time, over suspends.
    async fn until(&self, deadline: SystemTime) {
        // What the clock said of our certificate may no longer be so once it was set.
        self.timer.until(deadline, || self.store.look_again()).await;
    }
}

/// Uniform in 0..1.
fn random() -> f64 {
    let mut bytes = [0; 8];
    // Without randomness renewals are not spread, which is better than none.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    (u64::from_ne_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
