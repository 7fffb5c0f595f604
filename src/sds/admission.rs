use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    sys::signal::kill,
    unistd::{Pid, geteuid},
};
use tracing::warn;

use crate::config::{SdsConfig, Service, overflow_uid};

/// Who may connect to the socket.
pub(super) struct Admission {
    own: u32,
    allowed: BTreeSet<u32>,
    nobody: Nobody,
    /// Whether the socket is open to users who are to be told apart.
    shared: bool,
    service: Service,
}

/// Whether the kernel tells our own number of others as well: it has one for all users without a number in our user
/// namespace, and images often run as just that one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nobody {
    /// It does not, or every user has a number here.
    Ours,
    /// It does, and we may ask whether a process is of our user.
    LookedAt,
    /// It does, and we may not.
    Anybody,
}

impl Admission {
    /// Looks at who we are, and warns where that is not ours alone.
    pub(super) fn new(config: &SdsConfig) -> Self {
        let own = geteuid().as_raw();
        let nobody = if own != overflow_uid() || everybody_has_a_number() {
            Nobody::Ours
        } else if kill(Pid::this(), None).is_ok() {
            Nobody::LookedAt
        } else {
            Nobody::Anybody
        };
        if own == overflow_uid() {
            let peers = match nobody {
                Nobody::Ours => "every process of that user can request the key",
                Nobody::LookedAt => {
                    "the kernel also reports it for all users that our user namespace does not map; those of them \
                     whose process can be seen from here are refused, and others cannot be told from our own"
                }
                Nobody::Anybody => {
                    "the kernel also reports it for all users that our user namespace does not map, and where \
                     a seccomp profile forbids kill they cannot be told from our own"
                }
            };
            warn!(uid = own, "running as the overflow user: {peers}; run the shim and its Envoy as another user");
        }
        Self { own, allowed: config.allowed_uids.clone(), nobody, shared: config.is_shared(), service: config.service }
    }

    /// Whether this is our own user, as far as the kernel tells.
    pub(super) fn is_own(&self, uid: u32) -> bool {
        uid == self.own
    }

    /// # Errors
    /// Why this user may not connect, and what to do.
    pub(super) fn admit(&self, socket: impl AsFd, pid: Option<i32>, uid: u32) -> Result<(), String> {
        // Nobody is, so the kernel tells everybody as ourselves (gVisor before November 2025).
        if self.shared && pid == Some(Pid::this().as_raw()) {
            return Err(format!(
                "this kernel does not report who connects (gVisor): unset {} and run {} as the shim's own user",
                self.service.users(),
                self.service.clients()
            ));
        }
        if uid == self.own && self.nobody == Nobody::LookedAt && is_ours(socket, pid) == Some(false) {
            return Err("our user namespace does not map its user".to_owned());
        }
        if uid == self.own || self.allowed.contains(&uid) {
            return Ok(());
        }
        Err(format!("to allow it, add the user to {}", self.service.users()))
    }
}

/// Whether our user namespace has a number for each user, as the first one has.
fn everybody_has_a_number() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum::<u64>() >= u64::from(u32::MAX)
}

/// Whether the process that has connected is of our user; nothing where it cannot be seen from here. May we signal it?
/// To that question alone the kernel answers by who the users are, whatever numbers they have in which user namespace,
/// and of processes as well that nobody may look into.
fn is_ours(socket: impl AsFd, pid: Option<i32>) -> Option<bool> {
    let process = match locked::peer_process(socket.as_fd()) {
        Ok(process) => Some(process),
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => None,
        // It has ended already: there is nobody to be served.
        Err(_) => return Some(false),
    };
    let number = || match &process {
        Some(process) => number_of(process),
        None => Ok(pid.unwrap_or(0)),
    };
    match number() {
        Ok(0) => return None,
        Ok(pid) if pid > 0 && kill(Pid::from_raw(pid), None).is_ok() => {}
        _ => return Some(false),
    }
    // By now it may have ended, and its number may be another's.
    Some(number().is_ok_and(|pid| pid > 0))
}

/// The number of a process; 0 where it has none in our PID namespace, and -1 when it has ended.
fn number_of(process: &impl AsRawFd) -> io::Result<i32> {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let number = told.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
