//! The programs that are measured, started alike.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail, Workload,
    pilot_agent::{self, PilotAgent},
    shim::{self, Shim},
    workload::{ROOT_CERTIFICATE, SOCKET},
    workspace,
};

use crate::ground::Ground;

/// Names under which results are told.
pub(crate) const OURS: &str = "sds-shim";
pub(crate) const PEER: &str = "pilot-agent";
pub(crate) const FLOOR: &str = "the floor";

/// How often somebody who waits for one program alone looks for its socket.
const LOOK: Duration = Duration::from_micros(20);
/// Where a pod has its token.
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// A program with all that it is started with.
pub(crate) struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    /// Directory of its pod.
    pub(crate) directory: PathBuf,
}

/// A started program; killed when this is dropped.
pub(crate) struct Running {
    launch: Launch,
    child: Child,
    /// The moment before it was executed.
    pub(crate) since: Instant,
    /// Pause between two tries to connect to its socket while that is not there yet: the resolution of that moment.
    pub(crate) look: Duration,
}

impl Launch {
    /// The shipped binary.
    pub(crate) fn ours(ground: &Ground) -> Result<Self, Failure> {
        Self::ours_in(&ground.pod()?, ground)
    }

    /// The shipped binary in this pod.
    pub(crate) fn ours_in(pod: &Workload, ground: &Ground) -> Result<Self, Failure> {
        let env = Shim::for_workload(pod, ground.ca.address()).variables();
        Ok(Self::new(OURS, shim::program()?, pod.path(), env))
    }

    /// Istio's agent. It starts a stub in Envoy's place, and does not look for a cloud.
    pub(crate) fn peer(ground: &Ground) -> Result<Self, Failure> {
        let pod = ground.pod()?;
        let env = PilotAgent::for_workload(&pod, ground.ca.address())?.variables();
        Ok(Self::new(PEER, pilot_agent::program()?, pod.path(), env).arguments(&pilot_agent::ARGUMENTS))
    }

    /// The bare program.
    pub(crate) fn floor(ground: &Ground) -> Result<Self, Failure> {
        let (pod, port) = (ground.pod()?, ground.ca.address().port().to_string());
        let id = pod.spiffe_id();
        // Both work in the pod's directory.
        let arguments = [SOCKET, &port, ROOT_CERTIFICATE, TOKEN, &id];
        Ok(Self::new(FLOOR, floor()?, pod.path(), BTreeMap::new()).arguments(&arguments))
    }

    /// Envoy in this directory.
    pub(crate) fn envoy(name: &str, directory: &Path, arguments: &[&str]) -> Result<Self, Failure> {
        let program =
            std::env::var_os("ENVOY_BINARY").map_or_else(|| workspace().join("target/envoy/envoy"), From::from);
        if !program.is_file() {
            return Err(missing(&program));
        }
        Ok(Self::new(name, program, directory, BTreeMap::new()).arguments(arguments))
    }

    fn new(name: &str, program: PathBuf, directory: &Path, env: BTreeMap<String, String>) -> Self {
        Self { name: name.to_owned(), program, arguments: Vec::new(), env, directory: directory.to_owned() }
    }

    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// The one or the other of the two that are compared.
    pub(crate) fn of(name: &str, ground: &Ground) -> Result<Self, Failure> {
        if name == OURS { Self::ours(ground) } else { Self::peer(ground) }
    }

    /// Whether it is the bare program.
    pub(crate) fn is_floor(&self) -> bool {
        self.name == FLOOR
    }

    /// Takes another build of it.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Leaves a variable out.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Runs it under another program, which becomes it or starts it in turn.
    pub(crate) fn under(mut self, launcher: &[&str]) -> Self {
        let program = self.program.display().to_string();
        let rest = launcher.iter().skip(1).map(ToString::to_string);
        self.arguments.splice(..0, rest.chain([program]));
        self.program = PathBuf::from(launcher.first().copied().unwrap_or_default());
        self
    }

    /// Drops what the kernel has of the program's file, so that it comes from the disk again.
    pub(crate) fn forget_program(&self) -> Result<(), Failure> {
        let file = File::open(&self.program).or_fail("open the program")?;
        // What is not written yet cannot be dropped.
        file.sync_all().or_fail("write the program out")?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).or_fail("drop the program's pages")
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Running, Failure> {
        let log = File::create(self.log()).or_fail("create a log")?;
        let errors = log.try_clone().or_fail("create a log")?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.env).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let since = Instant::now();
        let child = command.spawn().or_fail(format!("start {}", self.program.display()))?;
        Ok(Running { launch: self, child, since, look: LOOK })
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its SDS socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.launch.directory.join(SOCKET)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).or_fail(format!("signal {}", self.launch.name))
    }

    /// Asks it to end and waits for that.
    pub(crate) fn terminate(self) -> Result<(), Failure> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Result<(), Failure> {
        self.child.wait().or_fail(format!("wait for {}", self.launch.name)).map(drop)
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Adds what it said to a failure.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        let log = fs::read_to_string(self.launch.log()).unwrap_or_default();
        failure.with_log(&self.launch.name, &log.lines().map(str::to_owned).collect::<Vec<_>>())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its group has what it started as well.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The bare program's file.
pub(crate) fn floor() -> Result<PathBuf, Failure> {
    let path = workspace().join("target/bench/floor");
    if path.is_file() { Ok(path) } else { Err(missing(&path)) }
}

fn missing(path: &Path) -> Failure {
    Failure::new(format!("{} is missing: run `make bench`", path.display()))
}
