use std::{convert::Infallible, future, sync::Arc};

use tokio::sync::Notify;
use tracing::{info, warn};

use super::{publisher::Publisher, settings::RenewalSettings};
use crate::{
    clock,
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
        Self { files, config, force, roots, store, shown, alone: false, told: None }
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
                () = changes.next() => false,
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
        memory::before_a_key();
        let read = read_certificate(&self.files.chain, &self.files.key).and_then(|read| match read.not_after() {
            end if end > now => Ok((MountedCertificate::new(&read)?, self.flaws(&read, now))),
            end => Err(format!("{}: the certificate expired at {}", self.files.chain.display(), clock::rfc3339(end))),
        });
        match read {
            Ok((read, flaws)) => {
                let (version, end, identity) = (self.version(), read.not_after, read.identity.clone());
                if !self.roots.publish_mounted(read).await {
                    return false;
                }
                let is_new = version != self.version();
                if !flaws.is_empty() && (is_new || self.shown.renewal().flaws != flaws) {
                    let told: Vec<_> = flaws.iter().map(|(_, text)| text.as_str()).collect();
                    warn!(
                        file = %self.files.chain.display(),
                        "serving the mounted certificate, but {}",
                        told.join("; and ")
                    );
                }
                if is_new {
                    info!(
                        file = %self.files.chain.display(),
                        not_after = clock::rfc3339(end),
                        "serving the mounted certificate"
                    );
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

    /// What peers will not like about it, who have the anchors beside it or those that are served.
    fn flaws(&self, read: &Credential, now: i64) -> Vec<(&'static str, String)> {
        let flaws = read.flaws(&self.files.roots, &self.roots.anchors(), now);
        flaws.iter().map(|flaw| (flaw.label(), flaw.to_string())).collect()
    }

    fn version(&self) -> Option<String> {
        self.shown.secrets().get(CERTIFICATE).map(|held| held.version().to_owned())
    }
}
