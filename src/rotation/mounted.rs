use std::{convert::Infallible, future, sync::Arc};

use tokio::sync::Notify;
use tracing::{info, warn};

use super::{publisher::Publisher, settings::RenewalSettings};
use crate::{
    clock::{self, WallTimer},
    config::{FilesConfig, MountedFiles},
    files::{Changes, MountedCertificate, read_certificate},
    identity::Credential,
    memory,
    status::{Reason, Trouble, Workload},
    store::{CERTIFICATE, SecretStore},
};

/// The key and certificate that are mounted as files: served until the CA has issued others, if it is asked. A pair
/// that cannot be used leaves the last good one in place.
pub struct Mounted {
    files: MountedFiles,
    config: FilesConfig,
    force: Arc<Notify>,
    roots: Arc<Publisher>,
    store: Arc<SecretStore>,
    shown: Arc<Workload>,
    /// Whether there is no CA whose certificates are shown as well.
    alone: bool,
    told: Option<String>,
    /// When (Unix seconds) it is to be told that nobody has renewed the certificate.
    overdue: Option<i64>,
}

/// When (Unix seconds) whoever mounts a certificate should have mounted the next one. Kubelet asks for a PodCertificate
/// up to 6.5 minutes after its signer meant it to, and signers may mean ten minutes before its end, or half an hour of a
/// day: a warning at a fifth, as for a token, would come for every one of theirs.
fn overdue(begins: i64, ends: i64) -> i64 {
    const MOST: i64 = 1200;
    ends.saturating_sub((ends.saturating_sub(begins).max(0) / 10).min(MOST))
}

/// Waits for that.
async fn due(timer: Option<&WallTimer>, overdue: Option<i64>) {
    match timer.zip(overdue) {
        Some((timer, due)) => timer.at(clock::deadline(due)).await,
        None => future::pending().await,
    }
}

impl Mounted {
    /// What is mounted is all that is served to the workload, shown as `identity`.
    pub fn new(settings: &RenewalSettings, files: MountedFiles, identity: String, store: Arc<SecretStore>) -> Self {
        let shown = settings.status.workload(identity, &store);
        let roots = Arc::new(Publisher::new(Arc::clone(&store), &settings.rotation.roots, true, Arc::clone(&shown)));
        Self { alone: true, ..Self::beside(settings, files, roots, store, shown) }
    }

    /// What is mounted is served until the CA issues.
    pub(super) fn beside(
        settings: &RenewalSettings,
        files: MountedFiles,
        roots: Arc<Publisher>,
        store: Arc<SecretStore>,
        shown: Arc<Workload>,
    ) -> Self {
        let (config, force) = (settings.files, Arc::clone(&settings.force));
        Self { files, config, force, roots, store, shown, alone: false, told: None, overdue: None }
    }

    /// Serves it, and the trust anchors, for as long as it is polled.
    pub async fn run(self, settings: RenewalSettings) -> Infallible {
        let roots = Arc::clone(&self.roots);
        tokio::select! {
            biased;
            never = roots.follow(settings.file_roots) => never,
            never = self.follow() => never,
        }
    }

    /// Publishes each generation, until the CA has issued a certificate.
    pub(super) async fn follow(mut self) -> Infallible {
        let MountedFiles { chain, key, .. } = self.files.clone();
        let mut changes = Changes::new(vec![chain, key], self.config.debounce, self.config.check);
        let force = Arc::clone(&self.force);
        let mut asked = false;
        let timer = WallTimer::new()
            .inspect_err(|error| warn!("no wall-clock timer, so an overdue certificate is not reported: {error}"))
            .ok();
        loop {
            // Watched and listened to before they are read, so that no change and no signal falls in between.
            let forced = force.notified();
            if !self.publish().await {
                drop(changes);
                return future::pending().await;
            }
            if asked {
                self.shown.looked();
            }
            asked = tokio::select! {
                biased;
                () = changes.next() => false,
                // It is read again before it is told.
                () = due(timer.as_ref(), self.overdue) => false,
                () = forced => {
                    if self.roots.by_ca() {
                        continue;
                    }
                    info!("re-reading the mounted files: requested by signal");
                    // The anchors that may be new as well come first.
                    tokio::time::sleep(self.config.debounce).await;
                    true
                }
            };
        }
    }

    /// Reads and publishes; `false` when nothing more is to be read.
    async fn publish(&mut self) -> bool {
        // What is wrong with files that nobody needs any more is no trouble.
        if self.roots.by_ca() {
            return false;
        }
        let now = clock::now();
        let overdue = self.overdue.take_if(|due| *due <= now);
        memory::before_a_key();
        let read = read_certificate(&self.files.chain, &self.files.key).and_then(|read| match read.not_after() {
            end if end > now => Ok((MountedCertificate::new(&read)?, self.flaws(&read, now), read.not_before())),
            end => Err(format!("{}: the certificate expired at {}", self.files.chain.display(), clock::rfc3339(end))),
        });
        match read {
            Ok((read, flaws, begins)) => {
                let (version, end, identity) = (self.shown.version(), read.not_after, read.identity.clone());
                if !self.roots.publish_mounted(read).await {
                    return false;
                }
                let is_new = version != self.shown.version();
                if !flaws.is_empty() && (is_new || self.shown.renewal().flaws != flaws) {
                    let told: Vec<_> = flaws.iter().map(|(_, text)| text.as_str()).collect();
                    warn!(
                        file = %self.files.chain.display(),
                        "serving the mounted certificate, but {}",
                        told.join("; and ")
                    );
                }
                if is_new {
                    self.overdue = Some(self::overdue(begins, end));
                    info!(
                        file = %self.files.chain.display(),
                        not_after = clock::rfc3339(end),
                        "serving the mounted certificate"
                    );
                }
                if !is_new && overdue.is_some() {
                    self.tell_overdue(end, now);
                }
                if let Some(identity) = identity.filter(|_| self.alone) {
                    self.shown.identify(&identity, &identity);
                }
                self.shown.mounted(now, flaws);
                self.told = None;
            }
            Err(trouble) if self.told.as_ref() == Some(&trouble) => {}
            Err(trouble) => {
                let held = if self.store.holds(CERTIFICATE) { "still serving the previous one" } else { "Envoy waits" };
                warn!("cannot use the mounted certificate: {trouble}; {held}; watching the files");
                let next = now.saturating_add(self.config.check.pause().map_or(0, |check| check.as_secs() as i64));
                let (reason, text) = (Reason::Files, trouble.clone());
                self.shown.failed(next, Trouble { since: now, reason, text, reached: false });
                self.told = Some(trouble);
            }
        }
        memory::look_again();
        true
    }

    fn tell_overdue(&self, end: i64, now: i64) {
        let written = clock::written(&self.files.chain).unwrap_or(now);
        warn!(
            "{}: the certificate expires in {} min and its file has not changed for {} min: nobody has renewed it; \
             a PodCertificate that was refused once freezes its volume: see the events in `kubectl describe pod`",
            self.files.chain.display(),
            end.saturating_sub(now) / 60,
            now.saturating_sub(written) / 60
        );
    }

    /// What peers will not like about it, who have the anchors beside it or those that are served.
    fn flaws(&self, read: &Credential, now: i64) -> Vec<(&'static str, String)> {
        let flaws = read.flaws(&self.files.roots, &self.roots.anchors(), now);
        flaws.iter().map(|flaw| (flaw.label(), flaw.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::overdue;

    #[test]
    fn signers_of_pod_certificates_have_their_time_before_one_is_overdue() {
        // The shortest that kubelet takes, a day, and what a signer means by a day.
        for (life, left) in [(3600, 360), (7200, 720), (86_400, 1200), (86_400 * 365, 1200), (0, 0), (-5, 0)] {
            assert_eq!(overdue(1000, 1000 + life), 1000 + life - left, "of {life} s");
        }
        assert_eq!(overdue(i64::MIN, i64::MAX), i64::MAX - 1200);
        assert_eq!(overdue(i64::MAX, 0), 0);
    }
}
