use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use nix::sys::inotify::AddWatchFlags;
use tokio::sync::Notify;

use instance::{Instance, Wanted};

mod instance;

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// How often the ways are walked until they stay the same.
const MAX_WALKS: usize = 8;

/// What is watched in a directory of which an entry is on the way.
const ENTRIES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(ITSELF)
    .union(AddWatchFlags::IN_ATTRIB);
/// What is watched of a directory that is only passed: others may be busy in it.
const ITSELF: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF);
/// What is watched of the file: it may be written through another name.
const CONTENT: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_ATTRIB);

/// Waits for one of several files to change, however it does: written in place, replaced by a rename, or through a
/// link on the way to it being swapped, as kubelet does with `..data`, or a directory anywhere above it.
pub struct FileWatcher {
    paths: Vec<PathBuf>,
    instance: Arc<Instance>,
    wake: Arc<Notify>,
    held: Wanted,
}

impl FileWatcher {
    /// Watches `paths` from now on: a change after this call is seen by [`FileWatcher::changed`], so read the files
    /// after it. Call it inside a runtime.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances or watches for us (`fs.inotify.max_user_instances`,
    /// `fs.inotify.max_user_watches`).
    pub fn new(paths: &[&Path]) -> io::Result<Self> {
        let mut watcher = Self {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            instance: Instance::shared()?,
            wake: Arc::new(Notify::new()),
            held: Wanted::new(),
        };
        watcher.follow()?;
        Ok(watcher)
    }

    /// Waits until something happened on the way to one of the files, and watches the ways as they are then.
    ///
    /// # Errors
    /// As [`FileWatcher::new`].
    pub async fn changed(&mut self) -> io::Result<()> {
        self.instance.changed(&self.wake).await?;
        // The way may be quite another one now.
        self.follow()
    }

    /// Watches the ways as they are now, and nothing else.
    fn follow(&mut self) -> io::Result<()> {
        let before = std::mem::take(&mut self.held);
        let mut wanted = Wanted::new();
        let mut watched = BTreeMap::new();
        let mut full = Ok(());
        // A way that changed while it was walked leads elsewhere now, where nobody watches yet.
        for _ in 0..MAX_WALKS {
            let mut way = BTreeMap::new();
            self.paths.iter().for_each(|path| walk(path, &mut way));
            if way == watched || full.is_err() {
                break;
            }
            // In the order of their names, so that a directory is watched before what is in it.
            let mut news = way.iter().filter(|(place, flags)| watched.get(*place) != Some(flags));
            full = news.try_for_each(|(place, flags)| self.instance.watch(place, *flags, &self.wake, &mut wanted));
            watched = way;
        }
        self.instance.keep_only(&wanted, &before, &self.wake);
        self.held = wanted;
        full
    }
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        self.instance.keep_only(&Wanted::new(), &self.held, &self.wake);
    }
}

/// Every place in which a change can make `path` lead elsewhere or hold something else: the file, the directories of
/// it and of each link on the way, those that are passed, and where the way ends early, the deepest one that exists.
fn walk(path: &Path, found: &mut BTreeMap<PathBuf, AddWatchFlags>) {
    let mut watch = |place: &Path, flags| {
        *found.entry(place.to_owned()).or_insert(AddWatchFlags::empty()) |= flags;
    };
    let mut at = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut rest: Vec<PathBuf> = components(path);
    let mut links = 0;
    while let Some(next) = rest.pop() {
        let step = at.join(&next);
        let metadata = match fs::symlink_metadata(&step) {
            Ok(metadata) => metadata,
            Err(error) => {
                watch(&at, ENTRIES);
                // A directory that is closed to us can be watched from outside only.
                if let Some(outside) = at.parent().filter(|_| error.kind() == io::ErrorKind::PermissionDenied) {
                    watch(outside, ENTRIES);
                }
                return;
            }
        };
        if !metadata.is_symlink() {
            watch(&at, if rest.is_empty() { ENTRIES } else { ITSELF });
            at = step;
            continue;
        }
        watch(&at, ENTRIES);
        links += 1;
        let Ok(target) = fs::read_link(&step) else { return };
        if links > MAX_LINKS {
            return;
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    watch(&at, CONTENT);
}

/// Every place in which a change can make one of the paths lead elsewhere or hold something else, but for directories
/// that are only passed.
pub(super) fn places(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut way = BTreeMap::new();
    paths.iter().for_each(|path| walk(path, &mut way));
    way.into_iter().filter(|(_, flags)| *flags != ITSELF).map(|(place, _)| place).collect()
}

/// The steps of a path, the first one last.
fn components(path: &Path) -> Vec<PathBuf> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().rev().filter_map(step).collect()
}

#[cfg(test)]
mod tests;
