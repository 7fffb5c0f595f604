use std::{convert::Infallible, future, path::PathBuf, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

use super::Changes;
use crate::{bounded, clock, identity::TrustBundle};

/// Bytes of one file: some ninety anchors.
const MAX_FILE: usize = 128 * 1024;

/// The trust anchors in files, kept up to date: watched, and read anew when one of them changes. A file that goes
/// away or cannot be used any more keeps its last good content.
pub struct RootFiles {
    files: Vec<File>,
    inline: TrustBundle,
    changes: watch::Sender<TrustBundle>,
}

struct File {
    path: PathBuf,
    held: TrustBundle,
    told: Option<String>,
}

impl RootFiles {
    /// Reads the files for the first time. What is `inline` (PEM texts) belongs to them and never changes.
    pub fn new(paths: Vec<PathBuf>, inline: &[String]) -> (Self, watch::Receiver<TrustBundle>) {
        let files = paths.into_iter().map(|path| File { path, held: TrustBundle::default(), told: None });
        let (changes, receiver) = watch::channel(TrustBundle::default());
        let mut all = Self { files: files.collect(), inline: read_inline(inline), changes };
        all.read();
        (all, receiver)
    }

    /// Watches them for as long as it is polled, and looks at them without being told after each `check`.
    pub async fn watch(mut self, check: Option<Duration>) -> Infallible {
        if self.files.is_empty() {
            return future::pending().await;
        }
        let paths = self.files.iter().map(|file| file.path.clone()).collect();
        let mut changes = Changes::new(paths, Duration::ZERO, check);
        loop {
            // Watched before they are read, so that no change falls in between.
            self.read();
            changes.next().await;
        }
    }

    fn read(&mut self) {
        self.files.iter_mut().for_each(File::read);
        let in_files = self.files.iter().flat_map(|file| file.held.anchors());
        let anchors = in_files.chain(self.inline.anchors()).cloned().collect();
        let bundle = TrustBundle::new(anchors);
        self.changes.send_if_modified(|held| {
            let changed = !held.is_same_set(&bundle);
            if changed {
                *held = bundle;
            }
            changed
        });
    }
}

fn read_inline(texts: &[String]) -> TrustBundle {
    let mut anchors = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match TrustBundle::from_pem(text, clock::now()) {
            Ok((bundle, _)) => anchors.extend_from_slice(bundle.anchors()),
            Err(error) => warn!("PROXY_CONFIG: caCertificatesPem, text {}: {error}", index + 1),
        }
    }
    TrustBundle::new(anchors)
}

impl File {
    fn read(&mut self) {
        let read = bounded::read(&self.path, MAX_FILE).map_err(|error| bounded::describe(&self.path, &error)).and_then(
            |content| {
                let text = String::from_utf8_lossy(&content).into_owned();
                TrustBundle::from_pem(&text, clock::now()).map_err(|error| error.to_string())
            },
        );
        let trouble = match read {
            Ok((bundle, bad)) => {
                self.held = bundle;
                let bad: Vec<_> = bad.iter().map(ToString::to_string).collect();
                (!bad.is_empty()).then(|| bad.join("; "))
            }
            Err(error) => Some(error),
        };
        if trouble != self.told {
            match &trouble {
                Some(trouble) => warn!(
                    "trust anchors in {}: {trouble}; {} of it are served",
                    self.path.display(),
                    self.held.anchors().len()
                ),
                None => info!("trust anchors in {}: all can be used again", self.path.display()),
            }
            self.told = trouble;
        }
    }
}
