use std::{
    borrow::Cow,
    convert::Infallible,
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::statfs::{TMPFS_MAGIC, statfs},
};
use openssl::x509::X509;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    bounded::describe,
    clock,
    config::OutputConfig,
    identity::{TrustBundle, spiffe_id_of, write_bundle_map},
    store::{CERTIFICATE, Encoded, ROOTS, Snapshot, Validation, View},
};

/// The link that makes a generation the current one, as kubelet names it.
const CURRENT: &str = "..data";
/// Names of the files (contract with Istio's agent).
const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";
const ANCHORS: &str = "root-cert.pem";
/// The anchors by trust domain, for gRPC (proposal A87).
const BUNDLES: &str = "spiffe-bundle-map.json";
/// How certificates are protected: they are public.
const PUBLIC: u32 = 0o644;
/// Pause after a failure, such as a full disk: nothing tells when it is over.
const PAUSE: Duration = Duration::from_secs(5);
/// From which age on a generation that is not the current one was left behind by a process that ended while it wrote:
/// another process's may be younger.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// Takes what came of each attempt to write: nothing, or what is wrong.
pub type OnWritten = Box<dyn Fn(Result<(), String>) + Send>;

/// Writes key, chain and trust anchors into a directory each time one of them changes (`OUTPUT_CERTS`).
///
/// All of a generation are in a directory of their own, which one rename makes the current one: a reader who opens
/// the files by their names never finds parts of two. It is the one thing here that puts a key into a file.
pub struct OutputWriter {
    config: OutputConfig,
    report: OnWritten,
    told: Option<String>,
    generation: u64,
}

/// The files of a generation, as they lie in what is served: a key is not copied on its way to the file.
struct Generation<'a> {
    chain: &'a Encoded,
    key: &'a [u8],
    anchors: &'a Encoded,
    validation: Option<Arc<Validation>>,
}

impl<'a> Generation<'a> {
    /// Nothing as long as a part is missing.
    fn of(snapshot: &'a Snapshot) -> Option<Self> {
        let certificate = snapshot.get(CERTIFICATE).filter(|secret| !secret.is_anchors())?.resource();
        let anchors = snapshot.get(ROOTS).filter(|secret| secret.is_anchors())?;
        let (chain, key, validation) = (certificate, certificate.key(), anchors.validation());
        Some(Self { chain, key, anchors: anchors.resource(), validation })
    }

    /// Trust domains with their anchors: where they are not told apart, that of the certificate with all of them.
    fn bundles(&self) -> Vec<(String, TrustBundle)> {
        let Some(validation) = &self.validation else { return Vec::new() };
        if !validation.domains.is_empty() {
            return validation.domains.clone();
        }
        let chain: Vec<u8> = self.chain.certificates().flat_map(Cow::into_owned).collect();
        let id = X509::from_pem(&chain).ok().and_then(|leaf| spiffe_id_of(&leaf).ok());
        id.map(|id| (id.domain().to_string(), validation.anchors.clone())).into_iter().collect()
    }
}

impl OutputWriter {
    /// Warns unless the directory is in memory.
    pub fn new(config: OutputConfig, report: OnWritten) -> Self {
        let kind = statfs(existing(&config.directory)).map(|found| found.filesystem_type());
        if kind != Ok(TMPFS_MAGIC) {
            warn!(
                "OUTPUT_CERTS={}: not on a tmpfs: private keys written there may outlive the pod",
                config.directory.display()
            );
        }
        Self { config, report, told: None, generation: 0 }
    }

    /// Follows what is held for as long as it is polled.
    pub async fn run(mut self, mut view: watch::Receiver<View>) -> Infallible {
        let mut written = None;
        loop {
            let snapshot = match &*view.borrow_and_update() {
                View::Open(snapshot) => snapshot.clone(),
                View::Ended(_) => Snapshot::default(),
            };
            let versions = versions(&snapshot);
            if versions.is_some() && versions != written {
                match self.write(&snapshot) {
                    Ok(()) => {
                        written.clone_from(&versions);
                        (self.report)(Ok(()));
                    }
                    Err(error) => self.tell(&error),
                }
            }
            drop(snapshot);
            let retry = async {
                if versions.is_some() && versions != written {
                    tokio::time::sleep(PAUSE).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = retry => {}
            }
        }
    }

    fn tell(&mut self, error: &str) {
        let text =
            format!("OUTPUT_CERTS={}: {error}; retrying every {} s", self.config.directory.display(), PAUSE.as_secs());
        (self.report)(Err(text.clone()));
        if self.told.as_ref() != Some(&text) {
            warn!("{text}");
            self.told = Some(text);
        }
    }

    /// Writes a generation, and makes it the current one.
    ///
    /// # Errors
    /// What is wrong with which file or directory.
    fn write(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let Some(generation) = Generation::of(snapshot) else { return Ok(()) };
        let (name, before) =
            self.place(&generation).map_err(|error| format!("{error}; the previous files stay in place"))?;
        let directory = &self.config.directory;
        let named = lead_names(directory);
        // Its key must not stay, whatever became of the names: it is no longer the current one.
        before.iter().for_each(|before| drop(fs::remove_dir_all(before)));
        sweep(directory, &name);
        named.map_err(|error| format!("{error}; the new files are in {CURRENT}, but not under each name"))?;
        if self.told.take().is_some() {
            info!("OUTPUT_CERTS={}: writing succeeds again", directory.display());
        }
        Ok(())
    }

    /// Makes it the current generation. Answers with its name, and where the one before is.
    fn place(&mut self, generation: &Generation<'_>) -> Result<(String, Option<PathBuf>), String> {
        let directory = &self.config.directory;
        make(directory)?;
        // A name that no earlier process of ours can have left half written.
        let name = loop {
            let name = format!("..{}_{}", std::process::id(), self.generation);
            self.generation += 1;
            match fs::create_dir(directory.join(&name)) {
                Ok(()) => break name,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(describe(directory, &error)),
            }
        };
        let place = directory.join(&name);
        let placed = self
            .fill(&place, generation)
            .and_then(|()| make_current(directory, &name).map_err(|error| describe(directory, &error)));
        match placed {
            Ok(before) => Ok((name, before)),
            Err(error) => {
                let _ = fs::remove_dir_all(&place);
                // The next attempt is under the same name, so that the same trouble is told once.
                self.generation -= 1;
                Err(error)
            }
        }
    }

    fn fill(&self, place: &Path, generation: &Generation<'_>) -> Result<(), String> {
        let file = |name: &str, mode: u32, content: &mut dyn Iterator<Item = Cow<'_, [u8]>>| {
            let path = place.join(name);
            self.file(&path, content, mode).map_err(|error| describe(&path, &error))
        };
        file(KEY, self.config.mode, &mut [Cow::Borrowed(generation.key)].into_iter())?;
        file(CHAIN, PUBLIC, &mut generation.chain.certificates())?;
        file(ANCHORS, PUBLIC, &mut generation.anchors.certificates())?;
        file(BUNDLES, PUBLIC, &mut write_bundle_map(generation.bundles()).map(Cow::Owned))?;
        open_to_all(place).and_then(|opened| opened.sync_all()).map_err(|error| describe(place, &error))
    }

    fn file(&self, path: &Path, content: &mut dyn Iterator<Item = Cow<'_, [u8]>>, mode: u32) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        for piece in content {
            file.write_all(&piece)?;
        }
        if let Some(gid) = self.config.gid {
            fchown(&file, None, Some(gid))?;
        }
        // Last, so that nobody of another group than the right one ever may read it.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    }
}

/// Has the disk hold what is in a directory, and nothing else that somebody may have put in its place: to open a FIFO
/// could last for ever.
fn sync(directory: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(directory)?.sync_all()
}

/// Makes the directory where it is missing, for everybody to read. One that is there is left as it is: it may belong
/// to somebody else, such as a volume's, or be closed on purpose.
fn make(directory: &Path) -> Result<(), String> {
    let missing: Vec<_> =
        directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    for path in missing.into_iter().rev() {
        fs::create_dir(path).and_then(|()| open_to_all(path)).map_err(|error| match (error.kind(), path.parent()) {
            (io::ErrorKind::PermissionDenied, Some(above)) => describe(existing(above), &error),
            _ => describe(path, &error),
        })?;
    }
    Ok(())
}

/// Lets everybody read a directory that we have made. Whoever may write to the one above it could have put a link in its
/// place.
fn open_to_all(directory: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
    opened.set_permissions(Permissions::from_mode(0o755))?;
    Ok(opened)
}

/// Removes generations that processes have left behind that ended before they were done.
fn sweep(directory: &Path, current: &str) {
    let now = clock::wall_clock();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (name, old) = (entry.file_name(), |entry: &fs::DirEntry| {
            let written = entry.metadata().ok().filter(fs::Metadata::is_dir)?.modified().ok()?;
            now.duration_since(written).ok().filter(|age| *age >= LEFT_BEHIND)
        });
        if name != current && is_generation(&name) && old(&entry).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether that is a name that we give.
fn is_generation(name: &OsStr) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.to_str().and_then(|name| name.strip_prefix("..")?.split_once('_'));
    parts.is_some_and(|(pid, number)| is_number(pid) && is_number(number))
}

/// Versions of what belongs together; `None` as long as something is missing.
fn versions(snapshot: &Snapshot) -> Option<[String; 2]> {
    let version = |name| snapshot.get(name).map(|secret| secret.version().to_owned());
    Some([version(CERTIFICATE)?, version(ROOTS)?])
}

/// Swaps the link. Answers with the generation that it pointed to: what somebody else had it point to is not ours.
fn make_current(directory: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let current = directory.join(CURRENT);
    let ours = |before: &PathBuf| before.as_os_str() != name && is_generation(before.as_os_str());
    let before = fs::read_link(&current).ok().filter(ours);
    replace_link(directory, Path::new(name), &current)?;
    Ok(before.map(|before| directory.join(before)))
}

/// Makes the names lead through the link.
fn lead_names(directory: &Path) -> Result<(), String> {
    for file in [KEY, CHAIN, ANCHORS, BUNDLES] {
        let (path, target) = (directory.join(file), Path::new(CURRENT).join(file));
        // Files that Istio's agent has left give way, each at once.
        if fs::read_link(&path).ok().as_deref() != Some(&target) {
            replace_link(directory, &target, &path).map_err(|error| describe(&path, &error))?;
        }
    }
    sync(directory).map_err(|error| describe(directory, &error))
}

fn replace_link(directory: &Path, target: &Path, link: &Path) -> io::Result<()> {
    let temporary = directory.join("..link");
    let _ = fs::remove_file(&temporary);
    symlink(target, &temporary)?;
    fs::rename(&temporary, link).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// The directory, or the deepest one above it that exists.
fn existing(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."))
}
