use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;

use crate::{
    bounded,
    config::{FileResource, SdsConfig, directory_of},
};

/// The name whose file is of our choosing.
const SYSTEM_ROOTS: &str = "file-root:system";

/// Which files users beside our own may have by their names: those below the directories of
/// `SDS_SHIM_FILE_DIRECTORIES`. Whoever may write there could have a link lead to any file that we can read; so what
/// lies below them by its name must do so as well when all links are resolved, whoever asks for it.
#[derive(Clone)]
pub struct FileAccess {
    directories: Vec<PathBuf>,
    /// Where tokens lie that may be named, by whomever.
    tokens: Vec<PathBuf>,
    names: Arc<BTreeMap<String, FileResource>>,
}

/// Files of a resource that are held open, and the names by which they are read then.
pub(super) struct Opened {
    /// The same resource with these names.
    pub(super) files: FileResource,
    held: Vec<(PathBuf, PathBuf, File)>,
}

impl FileAccess {
    /// With the directories, which are absolute, and names of this configuration.
    pub fn new(config: &SdsConfig) -> Self {
        Self {
            directories: config.file_directories.clone(),
            tokens: config.token_directories.clone(),
            names: Arc::new(config.names.clone()),
        }
    }

    /// The files that a name stands for, if it is one of files.
    pub fn resource(&self, name: &str) -> Option<FileResource> {
        let files = self.names.get(name).cloned().or_else(|| FileResource::parse(name))?;
        // Envoy sends it to others: which those may be was for whoever has made it to say.
        match &files {
            FileResource::Token(path) => directory_of(&self.tokens, path).map(|_| files),
            _ => Some(files),
        }
    }

    /// Whether a name may be asked for by users beside our own.
    pub fn is_open(&self, name: &str) -> bool {
        let below = |files: FileResource| files.paths().into_iter().all(|path| self.directory(&files, path).is_some());
        name == SYSTEM_ROOTS || self.names.contains_key(name) || self.resource(name).is_some_and(below)
    }

    /// Opens those of the files that lie below the directories.
    ///
    /// # Errors
    /// When one cannot be opened, or a link leads out of its directory.
    pub(super) fn open(&self, files: &FileResource) -> Result<Opened, String> {
        let mut opened = Opened { files: files.clone(), held: Vec::new() };
        for path in files.paths() {
            let Some((directory, variable)) = self.directory(files, path) else { continue };
            if !opened.held.iter().any(|(name, ..)| name == path) {
                let (place, file) = open_below(directory, path, variable)?;
                opened.held.push((path.to_owned(), place, file));
            }
        }
        let place = |path: &PathBuf| {
            let held = opened.held.iter().find(|(name, ..)| name == path);
            held.map_or_else(|| path.clone(), |(_, place, _)| place.clone())
        };
        opened.files = match files {
            FileResource::Certificate { chain, key } => {
                FileResource::Certificate { chain: place(chain), key: place(key) }
            }
            FileResource::Roots(path) => FileResource::Roots(place(path)),
            FileResource::Token(path) => FileResource::Token(place(path)),
        };
        Ok(opened)
    }

    /// The directory that a path lies below, by its text alone, and the variable that names it.
    fn directory(&self, files: &FileResource, path: &Path) -> Option<(&Path, &'static str)> {
        let (directories, variable) = match files {
            FileResource::Token(_) => (&self.tokens, "SDS_SHIM_TOKEN_DIRECTORIES"),
            _ => (&self.directories, "SDS_SHIM_FILE_DIRECTORIES"),
        };
        Some((directory_of(directories, path)?, variable))
    }
}

impl Opened {
    /// A text with the names that everybody knows.
    pub(super) fn told(&self, text: String) -> String {
        let known = |text: String, (name, place, _): &(PathBuf, PathBuf, File)| {
            text.replace(&place.display().to_string(), &name.display().to_string())
        };
        self.held.iter().fold(text, known)
    }
}

/// Only where the kernel has found the file counts: names can change at any time. Nothing happens to what is opened so,
/// be it a device or a pipe, before it is opened anew by the name that is answered.
fn open_below(directory: &Path, path: &Path, variable: &str) -> Result<(PathBuf, File), String> {
    let told = |error| bounded::describe(path, &error);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).map_err(told)?;
    let place = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let (found, below) = (fs::read_link(&place).map_err(told)?, fs::canonicalize(directory).map_err(told)?);
    if !found.starts_with(&below) {
        let (path, directory) = (path.display(), directory.display());
        return Err(format!("{path}: a symbolic link leads out of {directory}, which {variable} does not allow"));
    }
    Ok((place, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_directories_are_allowed() {
        let access = |directories: Vec<PathBuf>| FileAccess {
            directories,
            tokens: vec!["/run/tokens".into()],
            names: Arc::new([("shop".to_owned(), FileResource::Roots("/shop.pem".into()))].into()),
        };
        let none = access(Vec::new());
        let access = access(vec!["/etc/certs".into(), "/run/more/".into()]);
        for (name, expected) in [
            ("file-cert:/etc/certs/c.pem~/etc/certs/k.pem", true),
            ("file-cert:/etc/certs/c.pem~/run/more/deep/k.pem", true),
            ("file-root:/etc//certs/./r.pem", true),
            ("file-root:system", true),
            ("file-cert:/etc/certs/c.pem~/etc/shadow", false),
            ("file-cert:/etc/shadow~/etc/certs/k.pem", false),
            ("file-root:/etc/certs/../shadow", false),
            ("file-root:/etc/certs-of-others/r.pem", false),
            ("file-root:etc/certs/r.pem", false),
            ("file-root:", false),
            ("file-other:/etc/certs/r.pem", false),
            ("file-token:/run/tokens/a/b", true),
            ("file-token:/etc/certs/token", false),
            ("file-token:/run/tokens/../token", false),
            ("file-root:/run/tokens/a", false),
            ("shop", true),
            ("shop-cacert", false),
            ("file-root:/shop.pem", false),
        ] {
            assert_eq!(access.is_open(name), expected, "{name}");
        }
        assert!(!none.is_open("file-root:/etc/certs/r.pem") && none.is_open("shop"));
        assert!(
            none.resource("file-token:/etc/certs/token").is_none()
                && none.resource("file-token:/run/tokens/t").is_some()
        );
        assert_eq!(none.resource("shop"), FileResource::parse("file-root:/shop.pem"));
    }
}
