use std::{io, sync::Arc, time::Duration};

use openssl::error::ErrorStack;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::{
    backoff::Backoff,
    caller::{AttemptError, Caller},
    schedule::renewal_after,
};
use crate::{
    ca::{CitadelClient, ClientCertificate},
    clock::{self, WallTimer},
    config::RotationConfig,
    identity::{BearerToken, CertificateRequest, KeySpec, SpiffeId, SvidError, TokenError, X509Svid},
    store::{Content, SecretStore},
};

/// How long a token that cannot be used is left alone when its file does not change: the clock may have been wrong.
const TOKEN_RECHECK: Duration = Duration::from_secs(30);

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

/// The one loop that keeps a workload's certificate fresh. How often it asks the CA depends on time alone.
pub struct Renewal<T> {
    identity: SpiffeId,
    key: KeySpec,
    rotation: RotationConfig,
    caller: Caller,
    tokens: T,
    store: Arc<SecretStore>,
    force: Arc<Notify>,
    timer: WallTimer,
    held: Option<X509Svid>,
    trouble: Option<String>,
}

impl<T: TokenSource> Renewal<T> {
    /// A loop that holds nothing yet. A notification of `force` renews at once.
    ///
    /// # Errors
    /// When the kernel has no timer for us.
    pub fn new(
        identity: SpiffeId,
        key: KeySpec,
        rotation: RotationConfig,
        ca: CitadelClient,
        tokens: T,
        store: Arc<SecretStore>,
        force: Arc<Notify>,
    ) -> io::Result<Self> {
        let (caller, timer) = (Caller::new(ca), WallTimer::new()?);
        Ok(Self { identity, key, rotation, caller, tokens, store, force, timer, held: None, trouble: None })
    }

    /// Runs for as long as the credentials can be renewed; with a projected token that is for ever.
    pub async fn run(mut self) -> RenewalEnded {
        loop {
            let svid = match self.renew().await {
                Ok(svid) => svid,
                Err(ended) => return ended,
            };
            let (_, not_after) = svid.validity();
            let wait = renewal_after(&self.rotation, not_after, clock::now(), random());
            info!(
                identity = %self.identity,
                serial = svid.serial(),
                not_after,
                renewal_in_s = wait.as_secs(),
                "a certificate was issued"
            );
            self.held = Some(svid);
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
        loop {
            let failure = match self.attempt(&request).await {
                Ok(svid) => {
                    if self.trouble.take().is_some() {
                        info!("the CA issues again");
                    }
                    return Ok(svid);
                }
                Err(failure) => failure,
            };
            self.tell(&failure);
            if T::FIXED && failure.token_is_final(self.held.is_some()) {
                return Err(RenewalEnded::Token(failure.to_string()));
            }
            let wait = if failure.needs_token() { TOKEN_RECHECK } else { backoff.next(random()) };
            debug!(wait_ms = wait.as_millis() as u64, "waiting before the next attempt");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                true = self.tokens.changed(), if failure.concerns_token() => backoff.reset(),
            }
        }
    }

    /// Makes the key and the CSR, however long memory or randomness are missing.
    async fn request(&mut self) -> CertificateRequest {
        let mut backoff = Backoff::default();
        loop {
            match CertificateRequest::new(&self.key, &self.identity) {
                Ok(request) => return request,
                Err(error) => self.tell(&Failure::Key(error)),
            }
            tokio::time::sleep(backoff.next(random())).await;
        }
    }

    async fn attempt(&mut self, request: &CertificateRequest) -> Result<X509Svid, Failure> {
        let now = clock::now();
        let token = self.tokens.read(now);
        // An expired certificate would only be refused.
        let own = self.held.as_ref().filter(|held| held.validity().1 > now).map(ClientCertificate::own);
        let token = token.as_deref().map_err(Clone::clone);
        let answer = self.caller.attempt(request.csr_pem(), token, own).await?;
        let (svid, bundle) = X509Svid::verify(&answer, request.key(), &self.identity, clock::now())?;
        let roots = Content::ValidationContext { anchors: bundle.to_pem().map_err(SvidError::from)? };
        let certificate = Content::TlsCertificate {
            chain: svid.chain_pem().map_err(SvidError::from)?,
            key: svid.key_pem(&self.key).map_err(SvidError::from)?,
        };
        // Peers' certificates are verified against roots whatever became of our own.
        self.store.publish([("ROOTCA", roots, i64::MAX), ("default", certificate, svid.validity().1)]);
        Ok(svid)
    }

    /// Tells a failure once for each change of cause, and what is served meanwhile.
    fn tell(&mut self, failure: &Failure) {
        let cause = failure.to_string();
        if self.trouble.as_deref().is_some_and(|told| same_cause(told, &cause)) {
            return;
        }
        match &self.held {
            Some(held) => {
                let not_after = held.validity().1;
                warn!(
                    serial = held.serial(),
                    not_after, "no new certificate: {cause}; the old one is served meanwhile"
                );
            }
            None => error!("no certificate yet: {cause}; Envoy waits, and we keep trying"),
        }
        self.trouble = Some(cause);
    }

    async fn sleep_until_renewal(&self, wait: Duration) {
        let deadline = clock::wall_clock() + wait;
        debug!(arena_used = locked::usage().used, "waiting for the renewal");
        // The timer also returns when the clock was set: then the deadline is looked at again.
        while clock::wall_clock() < deadline {
            tokio::select! {
                waited = self.timer.wait(deadline) => if let Err(error) = waited {
                    warn!("the wall-clock timer failed, so suspends are not noticed: {error}");
                    tokio::time::sleep(wait).await;
                },
                () = self.force.notified() => {
                    info!("a renewal was asked for");
                    return;
                }
            }
        }
    }
}

/// Why an attempt brought nothing that can be published.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("a key cannot be made: {0}")]
    Key(ErrorStack),
    #[error("{0}")]
    Attempt(#[from] AttemptError),
    #[error("the CA's answer is not used: {0}")]
    Answer(#[from] SvidError),
}

impl Failure {
    /// Whether it is pointless to ask again before there is another token.
    fn needs_token(&self) -> bool {
        matches!(self, Self::Attempt(error) if error.needs_token())
    }

    /// Whether another token may be just what is missing. Nothing else makes a change of the token a reason to ask:
    /// in an outage the number of calls depends on time alone.
    fn concerns_token(&self) -> bool {
        self.needs_token() || matches!(self, Self::Attempt(AttemptError::Ca(error)) if error.is_authentication())
    }

    /// Whether a token that never changes is of no more use. Once a certificate is held, a refusal of the token
    /// alone may pass; before, whoever brought the token should learn of it.
    fn token_is_final(&self, holding: bool) -> bool {
        self.needs_token() || (!holding && self.concerns_token())
    }
}

/// Whether two failures tell the same, but for the times and counts in them, which differ at each attempt.
fn same_cause(told: &str, cause: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(told) == words(cause)
}

/// Uniform in 0..1.
fn random() -> f64 {
    let mut bytes = [0; 8];
    // Without randomness renewals are not spread, which is better than none.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    (u64::from_ne_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
