//! The shim as it runs in a sidecar: an ordinary user, no capabilities, a limit on locked memory.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::{Failure, OrFail};

/// The user of istio-proxy's containers.
pub const UID: u32 = 1337;
/// What containers usually may lock: 8 MiB.
pub const MEMLOCK: u64 = 8 << 20;

/// How a process is confined. Needs root.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Limit of locked memory in bytes.
    pub memlock: u64,
    /// Whether `memfd_secret` is forbidden by a seccomp filter.
    pub without_secret_memory: bool,
    /// Whether the capability IPC_LOCK is kept; all others are dropped in any case.
    pub ipc_lock: bool,
    /// Whether the limit of core files is as high as we may make it.
    pub cores: bool,
    /// Whether its own requests to write none do nothing.
    pub dumpable: bool,
    /// Whether nothing is left out of core files, although it asks for that.
    pub nothing_left_out_of_cores: bool,
    /// Whether its user has no inotify instance left.
    pub without_inotify: bool,
    /// Whether it may make no thread and no process; its user is then one that nobody else is.
    pub alone: bool,
    /// Whether its binary is root's, with mode 0111, as it is to be installed: nobody can attach to it at any time.
    pub closed: bool,
    /// The `cgroup.procs` file of a control group in which it starts.
    pub cgroup: Option<PathBuf>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Confinement {
    /// As a sidecar is: 8 MiB that may be locked, no capabilities.
    pub const DEFAULT: Self = Self {
        memlock: MEMLOCK,
        without_secret_memory: false,
        ipc_lock: false,
        cores: false,
        dumpable: false,
        nothing_left_out_of_cores: false,
        without_inotify: false,
        alone: false,
        closed: false,
        cgroup: None,
    };

    /// The same with a binary that its user cannot read.
    pub const CLOSED: Self = Self { closed: true, ..Self::DEFAULT };

    /// The program and arguments that start `binary` in `directory` confined so. The directory and all in it becomes
    /// the user's, with a copy of the binary, because the user may not be able to reach ours.
    pub(crate) fn command(&self, binary: &Path, directory: &Path) -> Result<(PathBuf, Vec<String>), Failure> {
        copy(binary, &directory.join("sds-shim"))?;
        let mut arguments: Vec<String> = Vec::new();
        if let Some(cgroup) = &self.cgroup {
            let enter = "echo $$ > \"$0\" && exec \"$@\"";
            arguments.extend(["/bin/sh".to_owned(), "-c".to_owned(), enter.to_owned(), cgroup.display().to_string()]);
        }
        arguments.extend(["/usr/bin/prlimit".to_owned(), format!("--memlock={0}:{0}", self.memlock)]);
        if self.cores {
            let (_, hard) = getrlimit(Resource::RLIMIT_CORE).or_fail("read the limit of core files")?;
            let hard = if hard == RLIM_INFINITY { "unlimited".to_owned() } else { hard.to_string() };
            arguments.push(format!("--core={hard}"));
        }
        let user = if self.alone { 100_000 + std::process::id() } else { UID };
        if self.alone {
            arguments.push("--nproc=1".to_owned());
        }
        let id = user.to_string();
        let user_and_group = ["--", "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"];
        arguments.extend(user_and_group.map(str::to_owned));
        let capabilities = if self.ipc_lock { "-all,+ipc_lock" } else { "-all" };
        for set in ["--bounding-set", "--inh-caps", "--ambient-caps"] {
            arguments.push(format!("{set}={capabilities}"));
        }
        let filters = self.filters();
        if !filters.is_empty() {
            copy(&helper("filtered")?, &directory.join("filtered"))?;
            arguments.push("./filtered".to_owned());
            arguments.extend(filters.into_iter().chain(["--"]).map(str::to_owned));
        }
        if self.closed {
            // setpriv still has root's capabilities when it starts a program, and so would have read it.
            arguments.push("env".to_owned());
        }
        arguments.push("./sds-shim".to_owned());
        own(directory, user, user).or_fail(format!("give {} to uid {user}", directory.display()))?;
        if self.closed {
            let binary = directory.join("sds-shim");
            own(&binary, 0, 0).or_fail("take the binary back")?;
            fs::set_permissions(&binary, fs::Permissions::from_mode(0o111)).or_fail("close the binary")?;
        }
        Ok((PathBuf::from(arguments.remove(0)), arguments))
    }

    fn filters(&self) -> Vec<&'static str> {
        let filters = [
            (self.without_secret_memory, "without-secret-memory"),
            (self.dumpable, "dumpable"),
            (self.nothing_left_out_of_cores, "nothing-left-out-of-cores"),
            (self.without_inotify, "without-inotify"),
        ];
        filters.into_iter().filter_map(|(wanted, filter)| wanted.then_some(filter)).collect()
    }
}

/// A program of this crate, beside the test that runs.
pub fn helper(name: &str) -> Result<PathBuf, Failure> {
    let test = std::env::current_exe().or_fail("find the test's own binary")?;
    let path = test.ancestors().nth(2).unwrap_or(Path::new(".")).join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(format!("{} is missing: run `cargo build --package testkit --bins`", path.display())))
}

/// Copies by another process: with the file open for writing here, a child that another test starts at the same
/// moment would inherit it, and the program could not be executed ("text file busy").
pub fn copy(from: &Path, to: &Path) -> crate::Result {
    let status = Command::new("cp").arg(from).arg(to).status().or_fail("run cp")?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("cannot copy {}", from.display())))
}

/// Has a process execute where nothing is, which is a crash of its own making. Needs root.
pub fn crash(pid: u32) -> crate::Result {
    break_it(pid, Break::Crash)
}

/// What can become of a process.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// It executes where nothing is.
    Crash,
    /// The same once it has read its next signal, before it does anything about that.
    Signalled,
    /// After it has accepted its next connection it goes round in a circle.
    Spin,
    /// After that it waits for ever.
    Block,
}

/// Breaks a process. Needs root.
pub fn break_it(pid: u32, how: Break) -> crate::Result {
    let how = format!("{how:?}").to_lowercase();
    let status = Command::new(helper("breaker")?).args([pid.to_string(), how]).stdin(Stdio::null()).status();
    match status.or_fail("start the breaker")?.success() {
        true => Ok(()),
        false => Err(Failure::new("the breaker failed")),
    }
}

/// Whether this process may do what root may do to the system, such as mounting.
pub fn holds_sys_admin() -> bool {
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(capabilities.trim(), 16).is_ok_and(|capabilities| capabilities >> SYS_ADMIN & 1 == 1)
}

/// Gives a directory and all in it to a user.
pub fn own(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    lchown(path, Some(uid), Some(gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}
