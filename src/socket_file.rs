//! The file of a Unix socket that we listen on, and what others may have put in its place.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Which file a socket of ours is: the path alone may be a successor's by now.
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// The socket that was just bound at `path`.
    ///
    /// # Errors
    /// When there is none: it is gone, or another process has put something else there.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        if !found.file_type().is_socket() {
            return Err(io::Error::other("another process has replaced it"));
        }
        Ok(Self { path: path.to_owned(), inode: (found.dev(), found.ino()) })
    }

    /// One that is listened on at `path` since a process that has crashed.
    pub fn known(path: &Path, inode: (u64, u64)) -> Self {
        Self { path: path.to_owned(), inode }
    }

    /// Device and number.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Moves it to `path`, over whatever lies there.
    ///
    /// # Errors
    /// When the kernel refuses; then it lies where it lay.
    pub fn rename(&mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        path.clone_into(&mut self.path);
        Ok(())
    }

    /// Removes it, unless its path is somebody else's by now.
    pub fn remove(&self) {
        if Self::at(&self.path).is_ok_and(|there| there.inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether there is a socket at `path` on which nobody listens any more, as the result of connecting to it tells. One
/// whose owner is too busy to let us in is not dead.
pub fn is_dead<T>(path: &Path, connected: &io::Result<T>) -> bool {
    let refused = connected.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    // A file that is no socket refuses as well.
    refused && SocketFile::at(path).is_ok()
}
