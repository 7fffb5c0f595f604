use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
};

use locked::Readable;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

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
/// `IN_MASK_ADD`, which the binding has no name for: two names may lead to the same place.
const MASK_ADD: AddWatchFlags = AddWatchFlags::from_bits_retain(0x2000_0000);

/// Waits for one of several files to change, however it does: written in place, replaced by a rename, or through a
/// link on the way to it being swapped, as kubelet does with `..data`, or a directory anywhere above it.
pub struct FileWatcher {
    paths: Vec<PathBuf>,
    events: Readable,
}

impl FileWatcher {
    /// Watches `paths` from now on: a change after this call is seen by [`FileWatcher::changed`], so read the files
    /// after it.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances or watches for us (`fs.inotify.max_user_instances`,
    /// `fs.inotify.max_user_watches`).
    pub fn new(paths: &[&Path]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watched = BTreeMap::new();
        // A way that changed while it was walked leads elsewhere now, where nobody watches yet.
        for _ in 0..MAX_WALKS {
            let mut way = BTreeMap::new();
            paths.iter().for_each(|path| walk(path, &mut way));
            if way == watched {
                break;
            }
            // In the order of their names, so that a directory is watched before what is in it.
            for (place, flags) in way.iter().filter(|(place, flags)| watched.get(*place) != Some(flags)) {
                // What disappears in between is seen through its parent, which is watched as well.
                if let Err(error @ (Errno::ENOSPC | Errno::ENOMEM)) = inotify.add_watch(place, *flags | MASK_ADD) {
                    return Err(error.into());
                }
            }
            watched = way;
        }
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Ok(Self { paths, events: Readable::new(inotify.as_fd().try_clone_to_owned()?)? })
    }

    /// Waits until something happened on the way to one of the files, and watches the ways as they are then.
    ///
    /// # Errors
    /// As [`FileWatcher::new`].
    pub async fn changed(&mut self) -> io::Result<()> {
        self.events.read(|| Ok(())).await?;
        // A new instance instead of more watches: the way may be quite another one now.
        *self = Self::new(&self.paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        Ok(())
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
