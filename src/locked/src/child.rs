//! A child without a part in what we are: not our memory, not our limits, not our descriptors.

use std::{
    env,
    ffi::{CString, OsString},
    io,
    os::unix::{ffi::OsStringExt, process::ExitStatusExt},
    process::ExitStatus,
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, SigSet, Signal, signal},
        stat::{Mode, umask},
    },
    unistd::Pid,
};

use crate::{
    landlock,
    successor::{self, Taken},
};

/// A child that was started.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub pid: Pid,
    /// What kept it from being started in a domain of Landlock, from which it can neither signal nor trace us; `None`
    /// when it is in one.
    pub not_apart: Option<io::Error>,
}

/// What hardening took from this process, or will be taken from it, for the child that should have it. Once this is
/// gone there is no way back.
#[derive(Debug)]
pub struct Inherited {
    taken: Taken,
    variables: Vec<(&'static str, OsString)>,
}

impl Inherited {
    /// Files for us alone, no core, none of the `variables`; the hard limit of cores stays until this is dropped,
    /// because it cannot be raised again. `before` is what a process that has crashed had taken already.
    #[expect(clippy::disallowed_methods, reason = "what is taken away and given back is no setting")]
    pub(crate) fn take(variables: &[&'static str], before: Option<Taken>) -> io::Result<Self> {
        let variables = variables.iter().filter_map(|name| Some((*name, env::var_os(name)?))).collect();
        let core = getrlimit(Resource::RLIMIT_CORE)?;
        setrlimit(Resource::RLIMIT_CORE, 0, core.1)?;
        let found = Taken { umask: umask(OURS), core, blocked: successor::blocked()? };
        let taken = before.unwrap_or(found);
        successor::keep(taken);
        Ok(Self { taken, variables })
    }

    /// Has the child find this variable, unless there is one of that name.
    #[expect(clippy::disallowed_methods, reason = "handed on to the child, and no setting")]
    pub fn offer(&mut self, name: &'static str, value: OsString) {
        if env::var_os(name).is_none() {
            self.variables.push((name, value));
        }
    }

    /// Starts a program, found as a shell would find it, with our environment and standard streams, and with the
    /// umask, core limit and signals that it would have without us.
    ///
    /// The umask and the limit belong to the process, so they are the child's for as long as it takes to start it.
    /// That shows nothing of ours: other threads make no files, and a process that is not dumpable leaves no core.
    ///
    /// # Errors
    /// What the kernel says of the program.
    pub fn spawn(self, program: OsString, arguments: Vec<OsString>) -> io::Result<Started> {
        await_children()?;
        // Not the standard library's Command: it would leave our signals blocked, and it forks where posix_spawn
        // cannot do what it was asked for. A forked process would write to the arena, which is shared memory with
        // the stack in it; what posix_spawn starts has no memory before it has its own.
        let environment = self.environment()?;
        let words: Vec<_> = [program].into_iter().chain(arguments).map(text).collect::<Result<_, _>>()?;
        successor::pause();
        umask(self.taken.umask);
        setrlimit(Resource::RLIMIT_CORE, self.taken.core.0, self.taken.core.1)?;
        let (started, apart) = landlock::apart(|| {
            let mut attributes = PosixSpawnAttr::init()?;
            attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
            attributes.set_sigmask(&successor::signal_set(self.taken.blocked))?;
            // Rust's runtime ignores it.
            attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
            posix_spawnp(&words[0], &PosixSpawnFileActions::init()?, &attributes, &words, &environment)
        });
        let pid = started?;
        successor::hand_on_command(pid);
        Ok(Started { pid, not_apart: apart.err() })
    }

    /// `NAME=VALUE` for each variable.
    #[expect(clippy::disallowed_methods, reason = "handed on to the child as it is")]
    fn environment(&self) -> io::Result<Vec<CString>> {
        let taken = self.variables.iter().map(|(name, value)| (OsString::from(name), value.clone()));
        let join = |(mut line, value): (OsString, OsString)| {
            line.push("=");
            line.push(value);
            text(line)
        };
        env::vars_os().chain(taken).map(join).collect()
    }
}

/// The kernel gave us all of these, so none of them has a zero byte.
fn text(value: OsString) -> io::Result<CString> {
    Ok(CString::new(value.into_vec())?)
}

impl Drop for Inherited {
    fn drop(&mut self) {
        umask(OURS);
        // Lowering a limit is always allowed.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    }
}

const OURS: Mode = Mode::from_bits_truncate(0o077);

/// Who started us may have ignored SIGCHLD: the kernel would throw away how children ended.
fn await_children() -> io::Result<()> {
    // SAFETY: the default action is no function of ours that could do something wrong.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Takes one child that has ended off the kernel's list, whichever it is: a started one, or an orphan that became
/// ours. `None` when there is no such child now.
pub fn reap() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    successor::before_reaping();
    // Not nix's call: it fails for a child that was ended by a real-time signal, and how it ended is then lost.
    // SAFETY: the pointer is to a variable that outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid > 0 {
        successor::hand_on_end(pid, status);
    }
    (pid > 0).then(|| (Pid::from_raw(pid), ExitStatus::from_raw(status)))
}
