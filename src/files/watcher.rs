use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
};

use locked::Readable;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Waits for one of several files to change, however it does: written in place, replaced by a rename, or through a
/// link on the way to it being swapped, as kubelet does with `..data`.
pub struct FileWatcher {
    paths: Vec<PathBuf>,
    events: Readable,
}

impl FileWatcher {
    /// Watches `paths` from now on: a change after this call is seen by [`FileWatcher::changed`], so read the files
    /// after it.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances for us (`fs.inotify.max_user_instances`).
    pub fn new(paths: &[&Path]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for directory in paths.iter().flat_map(|path| directories(path)).collect::<BTreeSet<_>>() {
            // What disappears in between is seen through its parent, which is watched as well.
            let _ = inotify.add_watch(
                &directory,
                AddWatchFlags::IN_CREATE
                    | AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_MOVED_TO
                    | AddWatchFlags::IN_MOVED_FROM
                    | AddWatchFlags::IN_DELETE
                    | AddWatchFlags::IN_DELETE_SELF
                    | AddWatchFlags::IN_MOVE_SELF
                    | AddWatchFlags::IN_ATTRIB
                    | AddWatchFlags::IN_ONLYDIR,
            );
        }
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Ok(Self { paths, events: Readable::new(inotify.as_fd().try_clone_to_owned()?)? })
    }

    /// Waits until something happened in a directory on the way to one of the files, and watches the ways as they
    /// are then.
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

/// Every directory in which a change can make `path` lead elsewhere: those of the file, of each link on the way, and
/// where the way ends early, the deepest one that exists.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut at = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut rest: Vec<PathBuf> = components(path);
    let mut links = 0;
    while let Some(next) = rest.pop() {
        let step = at.join(&next);
        let Ok(metadata) = fs::symlink_metadata(&step) else {
            found.insert(at);
            return found;
        };
        if !metadata.is_symlink() {
            if rest.is_empty() {
                found.insert(at.clone());
            }
            at = step;
            continue;
        }
        found.insert(at.clone());
        links += 1;
        let Ok(target) = fs::read_link(&step) else { return found };
        if links > MAX_LINKS {
            return found;
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    found
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
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use testkit::scratch::Scratch;

    #[tokio::test]
    async fn sees_a_swap_of_the_data_link() {
        let directory = Scratch::new("watcher").unwrap();
        let volume = directory.path();
        for generation in ["..1", "..2"] {
            fs::create_dir(volume.join(generation)).unwrap();
            fs::write(volume.join(generation).join("token"), generation).unwrap();
        }
        symlink("..1", volume.join("..data")).unwrap();
        symlink("..data/token", volume.join("token")).unwrap();
        let mut watcher = FileWatcher::new(&[&volume.join("token")]).unwrap();
        for target in ["..2", "..1"] {
            symlink(target, volume.join("..tmp")).unwrap();
            fs::rename(volume.join("..tmp"), volume.join("..data")).unwrap();
            while fs::read_to_string(volume.join("token")).unwrap() != target {
                watcher.changed().await.unwrap();
            }
            watcher.changed().await.unwrap();
        }
    }

    #[tokio::test]
    async fn sees_a_file_appear_where_no_directory_was() {
        let directory = Scratch::new("watcher").unwrap();
        let file = directory.path().join("a/b/token");
        let mut watcher = FileWatcher::new(&[&file]).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        watcher.changed().await.unwrap();
        fs::write(&file, "x").unwrap();
        watcher.changed().await.unwrap();
        assert!(file.exists());
    }

    #[test]
    fn a_loop_of_links_ends() {
        let directory = Scratch::new("watcher").unwrap();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert!(directories(&directory.path().join("a")).contains(directory.path()));
    }
}
