use std::{convert::Infallible, fs, future, io, path::PathBuf, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

use super::FileWatcher;
use crate::{bounded, clock, identity::TrustBundle};

/// Bytes of one file: some ninety anchors.
const MAX_FILE: usize = 128 * 1024;
/// What must be free besides, for everybody else.
const RESERVE: usize = 448 * 1024;
/// Pause between two looks at the files when the kernel cannot tell us of changes.
const WITHOUT_WATCHER: Duration = Duration::from_secs(30);

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

    /// Watches them for as long as it is polled.
    pub async fn watch(mut self) -> Infallible {
        if self.files.is_empty() {
            return future::pending().await;
        }
        let (mut watcher, mut told) = (self.watcher(), false);
        loop {
            // Watched before they are read, so that no change falls in between.
            self.read();
            let watched = match watcher {
                Ok(ref mut watcher) => watcher.changed().await,
                Err(ref error) => Err(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error)),
            };
            match watched {
                Ok(()) => told = false,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(
                            "the files with trust anchors cannot be watched, they are looked at every 30 s: {error} \
                             (fs.inotify.max_user_instances may be too low for the pods of this node)"
                        );
                    }
                    tokio::time::sleep(WITHOUT_WATCHER).await;
                    watcher = self.watcher();
                }
            }
        }
    }

    fn watcher(&self) -> io::Result<FileWatcher> {
        FileWatcher::new(&self.files.iter().map(|file| file.path.as_path()).collect::<Vec<_>>())
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
        // It is in memory twice while it is read, and again as what is made from it.
        let size = fs::metadata(&self.path).map_or(0, |metadata| metadata.len() as usize).min(MAX_FILE);
        let content = match locked::has_room(&[size, size, size, RESERVE]) {
            true => bounded::read(&self.path, MAX_FILE).map_err(|error| error.to_string()),
            false => Err("there is no room for it now; SDS_SHIM_ARENA_KIB makes more".to_owned()),
        };
        let read = content.and_then(|content| {
            let text = String::from_utf8_lossy(&content).into_owned();
            TrustBundle::from_pem(&text, clock::now()).map_err(|error| error.to_string())
        });
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
