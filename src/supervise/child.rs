use std::{ffi::OsString, io, path::Path, process::ExitStatus};

use locked::{Inherited, Started};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tracing::{debug, info};

/// A command that is to be started.
pub struct Launch {
    program: OsString,
    arguments: Vec<OsString>,
    inherited: Inherited,
}

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no such program.
    #[error("{0}: no such program, here or in PATH, or its interpreter or loader is missing")]
    NotFound(String),
    /// There is one that cannot be executed.
    #[error("cannot execute {0}: {1}")]
    NotExecutable(String, io::Error),
    /// The kernel has no room for another process.
    #[error("cannot start {0}: {1}")]
    NoRoom(String, io::Error),
}

impl Launch {
    /// The program, its arguments, and what it is to have that this process gave up.
    pub fn new(program: OsString, arguments: Vec<OsString>, inherited: Inherited) -> Self {
        Self { program, arguments, inherited }
    }

    /// Tells the program where it finds the Workload API, unless it was told already.
    #[must_use]
    pub fn with_workload_api(mut self, socket: &Path) -> Self {
        let mut address = OsString::from("unix://");
        address.push(socket);
        self.inherited.offer("SPIFFE_ENDPOINT_SOCKET", address);
        self
    }

    /// Adopts orphans from now on, as the first process of a container does anyway: what the command leaves behind
    /// would else lie about as zombies where that process does not care.
    pub(super) fn adopt_orphans(&self) {
        // Every kernel that we can run on knows it; without it, orphans go to the first process.
        let _ = prctl::set_child_subreaper(true);
    }

    pub(super) fn start(self) -> Result<Child, LaunchError> {
        let name = self.name();
        match self.inherited.spawn(self.program, self.arguments) {
            Ok(Started { pid, not_apart }) => {
                info!(program = name, pid = pid.as_raw(), "command started");
                match not_apart {
                    None => debug!("Landlock keeps the command from signalling or tracing this process"),
                    Some(error) => debug!("Landlock does not keep the command from signalling this process: {error}"),
                }
                Ok(Child { pid, name })
            }
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => LaunchError::NotFound(name),
                io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => LaunchError::NoRoom(name, error),
                _ => LaunchError::NotExecutable(name, error),
            }),
        }
    }

    /// For people. The arguments are left out: somebody may have put a secret there.
    pub(super) fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
}

/// The command while it runs.
pub(super) struct Child {
    pid: Pid,
    name: String,
}

impl Child {
    /// What a process that has crashed had started: we are its successor, and the command our child.
    pub(super) fn inherited(pid: Pid, name: String) -> Self {
        info!(program = name, pid = pid.as_raw(), "still following the command");
        Self { pid, name }
    }

    pub(super) fn send(&self, signal: Signal) {
        // It is on the kernel's list until it is reaped, so this reaches nobody else; one that has ended needs none.
        let _ = kill(self.pid, signal);
    }

    pub(super) fn is(&self, pid: Pid) -> bool {
        self.pid == pid
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// How a command ended, when it did: takes every child that has ended off the kernel's list.
pub(super) fn reap(child: Option<&Child>) -> Option<ExitStatus> {
    let mut ended = None;
    while let Some((pid, status)) = locked::reap() {
        if child.is_some_and(|child| child.is(pid)) {
            ended = Some(status);
        } else {
            debug!(pid = pid.as_raw(), "reaped an orphan: {status}");
        }
    }
    ended
}
