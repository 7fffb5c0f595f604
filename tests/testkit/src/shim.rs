//! The `sds-shim` process.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use tokio::time::{Instant, sleep};

use crate::{
    Failure, PATIENCE, POLL, Workload,
    confined::Confinement,
    container::{Container, Containment, inherited},
    http,
    process::{Process, binary},
    sds::SdsClient,
    unix,
    workload::SOCKET,
    workspace,
};

/// Where every shim's output is kept while the tests run, for the search for secrets at their end.
const OUTPUT: &str = "target/test-output";

/// Path of the admin socket in the pod.
const ADMIN_SOCKET: &str = "./shim-admin.sock";

/// The other architecture that it is built for, by Debian's name, and its binary; `None` where that is not built, which
/// is an error where nothing may go untested (`CI` or `REQUIRE_ROOT`).
pub fn cross_compiled() -> Option<(&'static str, PathBuf)> {
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let binary = workspace().join(format!("target/dist-{other}/sds-shim"));
    if !binary.exists() {
        let strict = ["CI", "REQUIRE_ROOT"].iter().any(|name| std::env::var_os(name).is_some());
        assert!(!strict, "run `make build ARCH={other}`");
        eprintln!("NOT TESTED: there is no binary for {other}; `make build ARCH={other}` makes it");
        return None;
    }
    Some((other, binary))
}

/// A running shim; killed when it is dropped. Everything of [`Process`] can be asked of it.
///
/// One that has crashed goes on in its place, so that nothing else may show it: the test fails when it is dropped,
/// unless [`ShimBuilder::may_crash`] or [`Shim::expect_crashes`] was called.
pub struct Shim {
    process: Process,
    container: Option<Container>,
    directory: PathBuf,
    socket: PathBuf,
    may_crash: bool,
}

/// What it says after a crash or a hang, in one that it does not survive, and in a hang that is left as it is.
const CRASHES: [&str; 3] = ["; restarted in place:", "sds-shim: crashed or hung", "sds-shim: this process hangs"];

impl Drop for Shim {
    fn drop(&mut self) {
        let directory = workspace().join(OUTPUT);
        let kept = fs::create_dir_all(&directory).and_then(|()| {
            let file = directory.join(format!("{}.log", std::process::id()));
            let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
            file.write_all((self.process.log().lines().join("\n") + "\n").as_bytes())
        });
        // A full disk must not look like a fault of the shim.
        drop(kept);
        let crash = self.process.log().lines().into_iter().find(|line| CRASHES.iter().any(|told| line.contains(told)));
        if let Some(crash) = crash.filter(|_| !self.may_crash && !std::thread::panicking()) {
            panic!("the shim crashed: {crash}");
        }
    }
}

impl Shim {
    /// A shim in `directory`, with nothing in its environment yet.
    pub fn builder(directory: &Path) -> ShimBuilder {
        ShimBuilder {
            name: "sds-shim".to_owned(),
            directory: directory.to_owned(),
            launcher: Vec::new(),
            arguments: Vec::new(),
            // Tests rotate as fast as they can.
            env: BTreeMap::from([("SDS_SHIM_RENEW_PAUSE".to_owned(), "0s".to_owned())]),
            socket: directory.join(SOCKET),
            confinement: None,
            containment: None,
            build: SHIPPED,
            may_crash: false,
        }
    }

    /// A shim with the environment that a workload's pod gives it; `ca` is the development CA's address.
    pub fn for_workload(workload: &Workload, ca: SocketAddr) -> ShimBuilder {
        let mut builder = Self::builder(workload.path())
            .env("CA_ADDR", format!("localhost:{}", ca.port()))
            .env("TRUST_DOMAIN", "cluster.local")
            .env("POD_NAMESPACE", workload.namespace())
            .env("SERVICE_ACCOUNT", workload.service_account())
            .env("POD_NAME", format!("{}-0", workload.service_account()))
            .env("ISTIO_META_CLUSTER_ID", "Kubernetes")
            // Many shims run on one machine here, and only one of them could have the usual port.
            .env("SDS_SHIM_ADMIN", format!("unix:{ADMIN_SOCKET}"));
        builder.name = format!("sds-shim of {}", workload.name());
        builder
    }

    /// `GET path` from its admin endpoints, once it listens there.
    pub async fn admin(&mut self, path: &str) -> Result<http::Answer, Failure> {
        let socket = self.directory.join(ADMIN_SOCKET);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match unix::connect(&socket).await {
                Ok(stream) => return http::get(stream, "localhost", path).await,
                Err(error) if Instant::now() > deadline || self.process.exited().is_some() => {
                    return Err(self.process.failure(format!("{} cannot be reached: {error}", socket.display())));
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// Says that the test makes it crash from now on.
    pub fn expect_crashes(&mut self) {
        self.may_crash = true;
    }

    /// The directory that it runs in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The container that it was started in with [`ShimBuilder::contained`]; the process is podman's then.
    pub fn container(&self) -> &Container {
        self.container.as_ref().expect("it runs in a container")
    }

    /// The socket that it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the socket accepts connections and opens one; fails when the process ends instead.
    pub async fn connect(&mut self) -> Result<SdsClient, Failure> {
        SdsClient::wait_for(&mut self.process, &self.socket).await
    }
}

impl Deref for Shim {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Shim {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// How a shim is to be started.
#[derive(Clone)]
pub struct ShimBuilder {
    name: String,
    directory: PathBuf,
    launcher: Vec<String>,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    socket: PathBuf,
    confinement: Option<Confinement>,
    containment: Option<Containment>,
    build: Build,
    may_crash: bool,
}

/// Where a build of the shim stands: the variable that names it, its usual place, and what makes it.
type Build = (&'static str, &'static str, &'static str);

const SHIPPED: Build = ("SHIM_BINARY", "target/dist/sds-shim", "run `make build`");
const DISTRIBUTION: Build = ("DISTRIBUTION_BINARY", "target/distribution/debug/sds-shim", "run `make distribution`");

/// The shipped binary.
pub fn program() -> Result<PathBuf, Failure> {
    let (variable, place, remedy) = SHIPPED;
    binary(variable, place, remedy)
}

impl ShimBuilder {
    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Leaves a variable out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds a command-line argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Has it start and follow a command.
    #[must_use]
    pub fn exec(mut self, command: &[&str]) -> Self {
        self.arguments.extend(["exec", "--"].iter().chain(command).map(ToString::to_string));
        self
    }

    /// Starts it through another program, which becomes it or starts it in turn.
    #[must_use]
    pub fn through(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(ToString::to_string).collect();
        self
    }

    /// Where tests look for the socket, relative to the directory, when it is not at its usual place.
    #[must_use]
    pub fn socket(mut self, path: &str) -> Self {
        self.socket = self.directory.join(path);
        self
    }

    /// Confines it, as an ordinary user without capabilities; our own user may still connect.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = Some(confinement);
        self.let_us_in()
    }

    /// Starts the image in a container instead of the binary; our own user may still connect.
    #[must_use]
    pub fn contained(mut self, containment: Containment) -> Self {
        self.containment = Some(containment);
        // The root is read-only.
        self.let_us_in().env("SDS_SHIM_ADMIN", format!("unix:{SOCKET}-admin"))
    }

    /// Our own user gets what the shim's would.
    fn let_us_in(self) -> Self {
        self.env("SDS_SHIM_ALLOW_UIDS", nix::unistd::geteuid().to_string()).env("SDS_SHIM_FILE_DIRECTORIES", "/")
    }

    /// Takes the plain build with the distribution's libssl, which `DISTRIBUTION_BINARY` names, instead of the shipped
    /// binary.
    #[must_use]
    pub fn distribution(mut self) -> Self {
        self.build = DISTRIBUTION;
        self
    }

    /// Says that the test makes it crash.
    pub fn may_crash(mut self) -> Self {
        self.may_crash = true;
        self
    }

    /// All variables, for who starts it by other means.
    pub fn variables(&self) -> BTreeMap<String, String> {
        self.env.clone()
    }

    /// Starts the binary that `SHIM_BINARY` names, else `target/dist/sds-shim`. With `SHIM_SANDBOX` set, every shim
    /// has it as its `SDS_SHIM_SECCOMP` and `SDS_SHIM_LANDLOCK`, if it has none.
    pub fn start(mut self) -> Result<Shim, Failure> {
        if let Ok(sandbox) = std::env::var("SHIM_SANDBOX") {
            for name in ["SDS_SHIM_SECCOMP", "SDS_SHIM_LANDLOCK"] {
                self.env.entry(name.to_owned()).or_insert_with(|| sandbox.clone());
            }
        }
        if let Some(containment) = self.containment {
            let container = Container::named();
            let (program, mut arguments) = containment.command(container.name(), &self.directory, &self.env)?;
            arguments.extend(self.arguments);
            let process = Process::start(&self.name, &program, &arguments, &inherited(), &self.directory)?;
            return Ok(Shim {
                process,
                container: Some(container),
                directory: self.directory,
                socket: self.socket,
                may_crash: self.may_crash,
            });
        }
        let (variable, place, remedy) = self.build;
        let program = binary(variable, place, remedy)?;
        let env: Vec<_> = self.env.into_iter().collect();
        let (mut program, mut arguments) = match &self.confinement {
            Some(confinement) => confinement.command(&program, &self.directory)?,
            None => (program, Vec::new()),
        };
        arguments.extend(self.arguments);
        if let Some((launcher, more)) = self.launcher.split_first() {
            let started = std::mem::replace(&mut program, PathBuf::from(launcher));
            arguments.splice(..0, more.iter().cloned().chain([started.display().to_string()]));
        }
        let process = Process::start(&self.name, &program, &arguments, &env, &self.directory)?;
        Ok(Shim { process, container: None, directory: self.directory, socket: self.socket, may_crash: self.may_crash })
    }
}
