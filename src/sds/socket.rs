use std::{
    fs, io,
    os::{
        fd::AsFd as _,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{Mode, umask};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    config::{SdsConfig, Service},
    socket_file::{SocketFile, is_dead},
};

/// Why the socket cannot be served. The process ends: half alive it would keep Envoy from every other source.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something that is not a socket is in the way. It is left alone.
    #[error("{path} exists and is not a socket: remove it or choose another {place}", path = .0.display(), place = .1.place())]
    NotASocket(PathBuf, Service),
    /// The kernel refused.
    #[error("cannot {action} {path}: {cause} (we are uid {uid}; {directory})", path = .path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
        /// Our user.
        uid: u32,
        /// Owner and mode of the directory.
        directory: String,
    },
}

/// The listening socket; its file goes away with it, unless somebody else has put another in its place.
pub struct SdsSocket {
    path: PathBuf,
    service: Service,
    mode: u32,
    bound: watch::Sender<Arc<Bound>>,
}

/// A listener, and which file it is.
struct Bound {
    listener: UnixListener,
    file: SocketFile,
}

impl SdsSocket {
    /// Listens at the configured path. A socket that is there already is replaced in one step, so that the path is
    /// never without one.
    ///
    /// # Errors
    /// When something else is at the path, or the kernel refuses.
    pub fn bind(config: &SdsConfig) -> Result<Self, BindError> {
        // Root needs no mode, and of the others the kernel keeps out whom it can. With users who are allowed beside
        // our own it cannot: then it is the look at the peer that does.
        let (path, mode) = (config.socket.clone(), if config.is_shared() { 0o666 } else { 0o600 });
        // Clients wait in its queue since the process that had it crashed.
        let inherited = locked::inherited_listener(place_of(config.service)).and_then(|(socket, inode)| {
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true).ok().map(|()| Bound { listener, file: SocketFile::known(&path, inode) })
        });
        let bound = inherited.map_or_else(|| Bound::new(&path, mode, config.service), Ok)?;
        bound.hand_on(config.service);
        let bound = watch::Sender::new(Arc::new(bound));
        warn_of_others(directory(&path), config.service);
        Ok(Self { path, service: config.service, mode, bound })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it serves.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Listens anew when the file is gone. Whatever else is in its place stays there: it may be a successor's.
    ///
    /// # Errors
    /// As [`SdsSocket::bind`]; those who are connected are served all the same.
    pub fn restore(&self) -> Result<bool, BindError> {
        if fs::symlink_metadata(&self.path).is_ok() {
            return Ok(false);
        }
        let bound = Bound::new(&self.path, self.mode, self.service)?;
        bound.hand_on(self.service);
        self.bound.send_replace(Arc::new(bound));
        Ok(true)
    }

    /// The next connection, also when the file was made anew meanwhile.
    pub(super) async fn accept(&self, listener: &mut Listener) -> io::Result<tokio::net::UnixStream> {
        loop {
            if listener.bound.has_changed().unwrap_or(false) {
                *listener = self.listener()?;
            }
            tokio::select! {
                accepted = listener.accepting.accept() => return accepted.map(|(stream, _)| stream),
                _ = listener.bound.changed() => *listener = self.listener()?,
            }
        }
    }

    pub(super) fn listener(&self) -> io::Result<Listener> {
        let mut bound = self.bound.subscribe();
        let listener = bound.borrow_and_update().listener.try_clone()?;
        Ok(Listener { accepting: tokio::net::UnixListener::from_std(listener)?, bound })
    }
}

/// The side of the socket that accepts.
pub(super) struct Listener {
    accepting: tokio::net::UnixListener,
    bound: watch::Receiver<Arc<Bound>>,
}

impl Bound {
    /// A successor of this process listens on it.
    fn hand_on(&self, service: Service) {
        locked::hand_on_listener(place_of(service), self.listener.as_fd(), self.file.inode());
    }

    fn new(path: &Path, mode: u32, service: Service) -> Result<Self, BindError> {
        let directory = directory(path);
        let refused = |action, path: &Path| {
            let (path, directory) = (path.to_owned(), directory.to_owned());
            move |cause| {
                let (uid, directory) = (nix::unistd::geteuid().as_raw(), describe(&directory));
                BindError::Refused { action, path, cause, uid, directory }
            }
        };
        fs::create_dir_all(directory).map_err(refused("create the directory", directory))?;
        if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(BindError::NotASocket(path.to_owned(), service));
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{file}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let listener = match bind(&temporary, mode) {
            // What a dead server has left takes the place that its successor needs.
            Err(error) if is_full(&error) && is_dead(path, &UnixStream::connect(path)) => {
                fs::remove_file(path).and_then(|()| bind(&temporary, mode))
            }
            bound => bound,
        };
        let listener = listener.map_err(refused("bind a socket for", path))?;
        let placed = listener.set_nonblocking(true).and_then(|()| SocketFile::at(&temporary)).and_then(|mut file| {
            file.rename(path)?;
            Ok(file)
        });
        match placed {
            Ok(file) => Ok(Self { listener, file }),
            Err(cause) => {
                let _ = fs::remove_file(&temporary);
                Err(refused("place the socket at", path)(cause))
            }
        }
    }
}

impl Drop for SdsSocket {
    fn drop(&mut self) {
        self.bound.borrow().file.remove();
    }
}

/// Where a successor finds it.
fn place_of(service: Service) -> locked::Listener {
    match service {
        Service::Sds => locked::Listener::First,
        Service::WorkloadApi => locked::Listener::Second,
    }
}

/// Whether there is no room for another file.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// A socket that has its mode from the first moment: who may write to its directory could have a mode that is set by
/// name land on any file of ours.
fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    // The process's own, for as long as it takes: there is no other thread that could make a file meanwhile.
    let before = umask(Mode::from_bits_truncate(0o777 & !mode));
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

/// Nothing that we do keeps those who may write to the directory from putting a socket of their own there.
fn warn_of_others(directory: &Path, service: Service) {
    const GROUP_AND_OTHERS: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let Ok(found) = fs::metadata(directory) else { return };
    let strangers = found.uid() != 0 && found.uid() != nix::unistd::geteuid().as_raw();
    if strangers || (found.mode() & GROUP_AND_OTHERS != 0 && found.mode() & STICKY == 0) {
        warn!(
            "other users can replace the {} socket with their own, and {} would accept what they serve: {}; give the \
             directory to our user with mode 0755, or mount it nowhere else",
            service.name(),
            service.clients(),
            describe(directory)
        );
    }
}

fn describe(directory: &Path) -> String {
    match fs::metadata(directory) {
        Ok(found) => format!(
            "{} has owner {}:{} and mode {:04o}",
            directory.display(),
            found.uid(),
            found.gid(),
            found.mode() & 0o7777
        ),
        Err(error) => format!("{}: {error}", directory.display()),
    }
}
