//! Directories for one test or one demo.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Failure, OrFail, workspace};

/// A unique directory under `target/`, removed on drop unless a test is failing, so that its traces can be read.
pub struct Scratch {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// Makes `target/PURPOSE/<unique>`.
    pub fn new(purpose: &str) -> Result<Self, Failure> {
        let parent = workspace().join("target").join(purpose);
        std::fs::create_dir_all(&parent).or_fail(format!("create {}", parent.display()))?;
        let directory = tempfile::Builder::new().prefix("").tempdir_in(&parent);
        let directory = directory.or_fail(format!("create a directory in {}", parent.display()))?;
        let path = directory.path().to_owned();
        Ok(Self { directory: Some(directory), path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory in place.
    pub fn keep(mut self) -> PathBuf {
        self.leave();
        self.path.clone()
    }

    /// Removes the directory now and says when that fails.
    pub fn remove(mut self) -> crate::Result {
        match self.directory.take() {
            Some(directory) => directory.close().or_fail(format!("remove {}", self.path.display())),
            None => Ok(()),
        }
    }

    fn leave(&mut self) {
        if let Some(directory) = self.directory.take() {
            let _ = directory.keep();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.leave();
        }
    }
}
