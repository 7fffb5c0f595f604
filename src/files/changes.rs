use std::{
    collections::BTreeSet,
    future, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use super::{FileWatcher, watcher::places};
use crate::{
    bounded::{MOUNTED_ALONE, is_mounted_alone, silent_file_system},
    config::FileCheck,
};

/// Files of which something is remembered, so that it is told once.
const REMEMBERED: usize = 64;
static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Pause between two looks at the files when the kernel cannot tell us of changes.
const WITHOUT_WATCHER: Duration = Duration::from_secs(5);

/// Tells when one of several files may have changed: when the kernel says so, and from time to time for file systems
/// that tell of no changes, such as network mounts.
pub struct Changes {
    paths: Vec<PathBuf>,
    watcher: io::Result<FileWatcher>,
    debounce: Duration,
    check: FileCheck,
    told: bool,
}

impl Changes {
    /// Watches the files from now on: what changes after this call is told by [`Changes::next`], so read them after
    /// it. `debounce` is how long to wait after a change for what belongs to it, and `check` says when to look at files
    /// that are not known to have changed.
    pub fn new(paths: Vec<PathBuf>, debounce: Duration, check: FileCheck) -> Self {
        tell_of_places(&paths, check);
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
                () = pause(look_again(&self.paths, self.check)) => return,
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
                        "cannot watch files, polling every 5 s: {error} (fs.inotify.max_user_{few} may be too low \
                         for the pods of this node)"
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

/// The time until the files are to be looked at without being told, if they are.
pub fn look_again(paths: &[PathBuf], check: FileCheck) -> Option<Duration> {
    match check {
        FileCheck::Silent(_) if silent(paths).is_none() => None,
        check => check.pause(),
    }
}

/// The first place on the way to one of the files whose file system does not tell of changes, and what that is.
fn silent(paths: &[PathBuf]) -> Option<(PathBuf, String)> {
    let mut all = places(paths).into_iter();
    all.find_map(|place| silent_file_system(&place).map(|kind| (place, kind)))
}

/// Says once of each file why its changes may come late, or not at all.
pub fn tell_of_places(paths: &[PathBuf], check: FileCheck) {
    for path in paths {
        let alone = is_mounted_alone(path);
        let late = check.pause().and_then(|pause| Some((pause, silent(std::slice::from_ref(path))?)));
        if (!alone && late.is_none()) || !is_first(path) {
            continue;
        }
        if alone {
            warn!("{}: {MOUNTED_ALONE}", path.display());
        }
        if let Some((pause, (place, kind))) = late {
            info!(
                "{}: {} is on {kind}, which does not report changes; checking the file every {} s",
                path.display(),
                place.display(),
                pause.as_secs().max(1)
            );
        }
    }
}

/// Whether nothing was said of a file yet.
fn is_first(path: &Path) -> bool {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.len() < REMEMBERED && told.insert(path.to_owned())
}

async fn pause(check: Option<Duration>) {
    match check {
        Some(pause) => tokio::time::sleep(pause).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_polled_on_file_systems_without_events() {
        let pause = Duration::from_secs(7);
        let at = |path: &str| [PathBuf::from("/dev/shm/a"), PathBuf::from(path)];
        for (path, check, expected) in [
            ("/dev/shm/b/c", FileCheck::Silent(pause), None),
            ("/proc/self/status", FileCheck::Silent(pause), Some(pause)),
            ("/dev/shm/b", FileCheck::All(pause), Some(pause)),
            ("/proc/self/status", FileCheck::Never, None),
        ] {
            assert_eq!(look_again(&at(path), check), expected, "{path} {check:?}");
        }
    }
}
