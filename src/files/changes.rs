use std::{
    future, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::warn;

use super::FileWatcher;

/// Pause between two looks at the files when the kernel cannot tell us of changes.
const WITHOUT_WATCHER: Duration = Duration::from_secs(5);

/// Tells when one of several files may have changed: when the kernel says so, and from time to time for file systems
/// that tell of no changes, such as network mounts.
pub struct Changes {
    paths: Vec<PathBuf>,
    watcher: io::Result<FileWatcher>,
    debounce: Duration,
    check: Option<Duration>,
    told: bool,
}

impl Changes {
    /// Watches the files from now on: what changes after this call is told by [`Changes::next`], so read them after
    /// it. `debounce` is how long to wait after a change for what belongs to it, and `check` the time between two
    /// looks at files that are not known to have changed.
    pub fn new(paths: Vec<PathBuf>, debounce: Duration, check: Option<Duration>) -> Self {
        Self { watcher: watch(&paths), paths, debounce, check, told: false }
    }

    /// Waits until it is time to read the files again.
    pub async fn next(&mut self) {
        if self.paths.is_empty() {
            return future::pending().await;
        }
        let watched = match &mut self.watcher {
            Ok(watcher) => tokio::select! {
                changed = watcher.changed() => changed,
                () = pause(self.check) => return,
            },
            Err(error) => Err(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error)),
        };
        match watched {
            // Who writes a chain and a key writes one after the other.
            Ok(()) if !self.debounce.is_zero() => tokio::time::sleep(self.debounce).await,
            Ok(()) => {}
            Err(error) => {
                if !self.told {
                    // ENOSPC.
                    let few = if error.kind() == io::ErrorKind::StorageFull { "watches" } else { "instances" };
                    warn!(
                        "files cannot be watched, they are looked at every 5 s: {error} \
                         (fs.inotify.max_user_{few} may be too low for the pods of this node)"
                    );
                    self.told = true;
                }
                // Who gives up waiting here must not find a watcher again that sees only a part of the way.
                self.watcher = Err(error);
                tokio::time::sleep(WITHOUT_WATCHER).await;
                self.watcher = watch(&self.paths);
            }
        }
    }
}

fn watch(paths: &[PathBuf]) -> io::Result<FileWatcher> {
    // The user's instances are few, and shared by all pods of a node.
    if paths.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    FileWatcher::new(&paths.iter().map(PathBuf::as_path).collect::<Vec<&Path>>())
}

async fn pause(check: Option<Duration>) {
    match check {
        Some(pause) => tokio::time::sleep(pause).await,
        None => future::pending().await,
    }
}
