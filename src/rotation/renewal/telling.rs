use std::time::Duration;

use tracing::{Level, error, warn};

use super::{Renewal, TokenSource};
use crate::{
    clock,
    rotation::{failure::Failure, trouble::Held},
    status::Trouble,
    store::CERTIFICATE,
};

/// What is told of failures.
impl<T: TokenSource> Renewal<T> {
    /// Tells a failure, in the log and in public, with what is done after `wait`.
    pub(super) fn failed(&mut self, failure: &Failure, wait: Duration, next: &str) {
        self.tell(failure, next);
        let now = clock::now();
        let class = failure.class();
        let (reason, text, reached) = (class.reason, self.explain(failure), class.reached());
        let next = now.saturating_add(wait.as_secs() as i64);
        self.shown.failed(next, Trouble { since: now, reason, text, reached });
    }

    /// Tells a failure, with what is served meanwhile and what is done next.
    pub(super) fn tell(&mut self, failure: &Failure, next: &str) {
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
    pub(super) fn mounted_certificate(&self) -> Option<Held> {
        let secrets = self.shown.secrets();
        let leaf = secrets.get(CERTIFICATE)?.facts().first()?;
        Some(Held { serial: leaf.serial.clone(), life: (leaf.not_before, leaf.not_after) })
    }

    /// A failure in words. A CA that does not accept us says nothing but that, and some say it of whatever they do not
    /// like (istio-csr also of the CSR), so we tell what we have shown it.
    pub(super) fn explain(&self, failure: &Failure) -> String {
        let why = match (failure, &self.token) {
            (Failure::Attempt(error), Some(token)) if error.class().is_authentication => {
                format!(
                    "{failure}; {token}; requested {} with ClusterID {}: check that the CA knows the token's issuer, \
                     expects this audience, has the same time, serves this trust domain and cluster and can reach its \
                     API server, and that the pod and its service account still exist",
                    self.wanted(),
                    self.ca.cluster_id
                )
            }
            _ => failure.to_string(),
        };
        let wanted = self.wanted();
        if wanted == self.identity { why } else { format!("as {wanted}: {why}") }
    }
}
