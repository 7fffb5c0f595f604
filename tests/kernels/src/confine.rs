//! Limits and users of what the guest starts. [`testkit::confined`] needs programs that the guest does not have.

use std::{fmt, os::unix::process::CommandExt, process::Command};

use nix::{
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities, set_keep_capabilities,
    set_no_new_privs,
};
use testkit::{Failure, OrFail, confined::UID};

/// Who a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The user of sidecars, without capabilities.
    Sidecar,
    /// The same with IPC_LOCK alone.
    SidecarWithIpcLock,
    /// Root with all capabilities.
    Root,
}

impl User {
    pub(crate) const ALL: [Self; 3] = [Self::Sidecar, Self::SidecarWithIpcLock, Self::Root];
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::SidecarWithIpcLock => "sidecar+ipc_lock",
            Self::Root => "root",
        })
    }
}

/// A user, and how many KiB it may lock; none is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confinement {
    pub(crate) user: User,
    pub(crate) memlock_kib: Option<u64>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self { user: User::Sidecar, memlock_kib: Some(8192) }
    }
}

impl Confinement {
    /// The words before a program's name that start it confined so.
    pub(crate) fn launcher(self) -> Vec<String> {
        let own = std::env::current_exe().map_or_else(|_| "kernel-guest".to_owned(), |path| path.display().to_string());
        vec![own, "confine".to_owned(), self.user.to_string(), limit(self.memlock_kib), "--".to_owned()]
    }
}

/// A limit in KiB as people write it.
pub(crate) fn limit(kib: Option<u64>) -> String {
    kib.map_or_else(|| "unlimited".to_owned(), |kib| kib.to_string())
}

/// `USER LIMIT -- PROGRAM...`: returns only when it fails.
pub(crate) fn become_program(arguments: &[String]) -> Result<(), Failure> {
    let [user, memlock, _, program, rest @ ..] = arguments else {
        return Err(Failure::new("usage: kernel-guest confine USER LIMIT -- PROGRAM..."));
    };
    let user = User::ALL.into_iter().find(|one| one.to_string() == *user);
    let user = user.ok_or_else(|| Failure::new("there is no such user"))?;
    let bytes = memlock.parse().map_or(RLIM_INFINITY, |kib: u64| kib << 10);
    setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes).or_fail("limit locked memory")?;
    if user != User::Root {
        leave_root(user)?;
    }
    Err(Failure::new(format!("cannot execute {program}: {}", Command::new(program).args(rest).exec())))
}

fn leave_root(user: User) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(UID), Gid::from_raw(UID));
    setgroups(&[]).or_fail("leave all groups")?;
    set_keep_capabilities(true).or_fail("keep capabilities")?;
    setresgid(gid, gid, gid).or_fail("change the group")?;
    setresuid(uid, uid, uid).or_fail("change the user")?;
    let kept = match user {
        User::SidecarWithIpcLock => CapabilitySet::IPC_LOCK,
        _ => CapabilitySet::empty(),
    };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    set_capabilities(None, sets).or_fail("drop capabilities")?;
    if !kept.is_empty() {
        configure_capability_in_ambient_set(kept, true).or_fail("hand IPC_LOCK on")?;
    }
    set_no_new_privs(true).or_fail("forbid new privileges")
}
