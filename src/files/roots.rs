use std::{
    convert::Infallible,
    future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::{
    Changes,
    crl::{CrlFile, SETTLE},
};
use crate::{
    bounded::{self, Opened},
    budget, clock,
    config::{FileCheck, RootsConfig},
    identity::{BundleMap, PeerTrust, TrustBundle, TrustDomain},
};

/// Bytes of one file with revocation lists or a trust domain.
const MAX_FILE: usize = 128 * 1024;

/// What peers are verified with, kept up to date from files: watched, and read anew when one of them changes. A file
/// that goes away or cannot be used any more keeps its last good content.
pub struct RootFiles {
    own: TrustDomain,
    own_file: Option<File<TrustDomain>>,
    files: Vec<File<TrustBundle>>,
    inline: TrustBundle,
    crl: Option<CrlFile>,
    domains: Vec<(TrustDomain, File<TrustBundle>)>,
    map: Option<File<Vec<(TrustDomain, TrustBundle)>>>,
    /// Whether our own trust domain may become one of the others.
    moves: bool,
    changes: watch::Sender<PeerTrust>,
}

struct File<T> {
    path: PathBuf,
    held: T,
    told: Option<String>,
}

impl RootFiles {
    /// Reads the files for the first time.
    pub fn new(config: &RootsConfig) -> (Self, watch::Receiver<PeerTrust>) {
        let (changes, receiver) = watch::channel(PeerTrust::default());
        let domain = |(domain, path): &(TrustDomain, PathBuf)| (domain.clone(), File::new(path));
        let own = config.trust_domain.clone();
        let own_file = |path: &PathBuf| File { held: own.clone(), ..File::new(path) };
        let mut all = Self {
            own_file: config.trust_domain_file.as_ref().map(own_file),
            own,
            files: config.files.iter().map(|path| File::new(path)).collect(),
            inline: read_inline(&config.inline),
            crl: config.crl.as_deref().map(|path| CrlFile::new(path, config)),
            domains: config.domains.iter().map(domain).collect(),
            map: config.bundle_map.as_deref().map(File::new),
            moves: config.moves,
            changes,
        };
        all.read();
        (all, receiver)
    }

    /// Watches them for as long as it is polled, and looks at them without being told after each `check` and each time
    /// that `force` asks for it.
    pub async fn watch(mut self, check: FileCheck, force: Arc<Notify>) -> Infallible {
        let others = self.crl.iter().map(|file| &file.path).chain(self.own_file.iter().map(|file| &file.path));
        let others = others.chain(self.map.iter().map(|file| &file.path));
        let paths: Vec<_> = self.anchors().map(|file| &file.path).chain(others).cloned().collect();
        if paths.is_empty() {
            return future::pending().await;
        }
        let mut changes = Changes::new(paths, Duration::ZERO, check);
        loop {
            // Watched before they are read, so that no change falls in between.
            let soon = self.read();
            tokio::select! {
                () = changes.next() => {}
                () = force.notified() => {}
                () = tokio::time::sleep(SETTLE), if soon => {}
            }
        }
    }

    fn anchors(&self) -> impl Iterator<Item = &File<TrustBundle>> {
        self.files.iter().chain(self.domains.iter().map(|(_, file)| file))
    }

    /// Answers whether that must be done again soon.
    fn read(&mut self) -> bool {
        self.files.iter_mut().for_each(File::read_anchors);
        self.domains.iter_mut().for_each(|(_, file)| file.read_anchors());
        self.map.iter_mut().for_each(File::read_map);
        let soon = self.crl.as_mut().is_some_and(CrlFile::read);
        self.own_file.iter_mut().for_each(File::read_trust_domain);
        let in_files = self.files.iter().flat_map(|file| file.held.anchors());
        let anchors = in_files.chain(self.inline.anchors()).cloned().collect();
        let own = self.own_file.as_ref().map_or(&self.own, |file| &file.held).clone();
        let mut domains: Vec<_> =
            self.domains.iter().map(|(domain, file)| (domain.clone(), file.held.clone())).collect();
        if let Some(map) = &self.map {
            // What vouches for our own comes from elsewhere; and it is told apart also where there are no others yet.
            domains.extend(map.held.iter().filter(|(domain, _)| self.moves || *domain != own).cloned());
            if domains.is_empty() {
                domains.push((own.clone(), TrustBundle::default()));
            }
        }
        let trust = PeerTrust {
            own,
            roots: TrustBundle::new(anchors),
            revocation: self.crl.as_ref().map(|file| file.revocation().clone()).unwrap_or_default(),
            domains,
        };
        self.changes.send_if_modified(|held| {
            let changed = !held.is_same(&trust);
            if changed {
                *held = trust;
            }
            changed
        });
        soon
    }
}

fn read_inline(texts: &[String]) -> TrustBundle {
    let mut anchors = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match TrustBundle::from_pem(text, clock::now()) {
            Ok((bundle, bad)) => {
                if !bad.is_empty() {
                    warn!("PROXY_CONFIG: caCertificatesPem, entry {}: {bad}", index + 1);
                }
                anchors.extend_from_slice(bundle.anchors());
            }
            Err(error) => warn!("PROXY_CONFIG: caCertificatesPem, entry {}: {error}", index + 1),
        }
    }
    TrustBundle::new(anchors)
}

impl<T: Default> File<T> {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), held: T::default(), told: None }
    }

    /// The text, or what is wrong with the file.
    fn text(&self) -> Result<String, String> {
        let opened = bounded::open(&self.path, MAX_FILE).and_then(|opened| opened.if_room(budget::has_room_for_roots));
        opened.and_then(Opened::text).map_err(|error| bounded::describe(&self.path, &error))
    }
}

impl<T> File<T> {
    fn tell(&mut self, what: &str, trouble: Option<String>, then: &str) {
        if trouble != self.told {
            match &trouble {
                Some(trouble) => warn!("{what} in {}: {trouble}; {then}", self.path.display()),
                None => info!("{what} in {}: everything is usable again", self.path.display()),
            }
            self.told = trouble;
        }
    }
}

impl File<TrustBundle> {
    fn read_anchors(&mut self) {
        let trouble = match TrustBundle::from_file(&self.path, clock::now(), budget::has_room_for_anchor) {
            Ok((bundle, bad)) => {
                self.held = bundle;
                (!bad.is_empty()).then(|| bad.to_string())
            }
            Err(error) => Some(error.to_string()),
        };
        let then = format!("{} in use", self.held.anchors().len());
        self.tell("trust anchors", trouble, &then);
    }
}

impl File<Vec<(TrustDomain, TrustBundle)>> {
    fn read_map(&mut self) {
        let read = self.text().and_then(|text| BundleMap::read(&text, clock::now(), budget::has_room_for_anchor));
        let trouble = match read {
            Ok(mut map) => {
                // One that is named and cannot be used keeps what it had.
                let kept = |held: &&(TrustDomain, TrustBundle)| map.unusable.contains(&held.0);
                map.domains.extend(self.held.iter().filter(kept).cloned().collect::<Vec<_>>());
                map.domains.sort_by(|(one, _), (other, _)| one.cmp(other));
                self.held = map.domains;
                (!map.bad.is_empty()).then(|| format!("left out: {}", map.bad.join("; ")))
            }
            Err(error) => Some(error),
        };
        let then = format!("trust anchors of {} trust domains in use", self.held.len());
        self.tell("the bundle map", trouble, &then);
    }
}

impl File<TrustDomain> {
    fn read_trust_domain(&mut self) {
        let read = self.text().and_then(|text| text.trim().parse::<TrustDomain>().map_err(|error| error.to_string()));
        let trouble = match read {
            Ok(domain) => {
                if domain != self.held {
                    info!("{}: trust domain changed to {domain} (was {})", self.path.display(), self.held);
                }
                self.held = domain;
                None
            }
            Err(error) => Some(error),
        };
        let then = format!("still {}", self.held);
        self.tell("the trust domain", trouble, &then);
    }
}
