//! The shim in a container as Kubernetes would start it, by podman.

mod programs;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use tokio::time::{Instant, sleep};

use crate::{
    Failure, OrFail, PATIENCE, POLL, Workload,
    confined::{MEMLOCK, UID, holds_sys_admin, own},
    envoy::{Bootstrap, SdsTransport},
    process::Process,
    workload::SOCKET,
    workspace,
};

pub use programs::ProgramImage;

/// The shim in an image.
pub const SHIM: &str = "/usr/local/bin/sds-shim";
/// What the sidecar's image is started with, to have its Envoy run as [`Containment::sidecar`] has it configured.
pub const ENVOY_ARGUMENTS: [&str; 5] = ["-c", "/etc/envoy/envoy.json", "--concurrency", "1", "--disable-hot-restart"];

/// Whether this machine lets us start containers. Where it does not, that is said past the test harness.
pub fn possible() -> bool {
    let possible = holds_sys_admin();
    if !possible {
        let _ = writeln!(std::io::stderr(), "NOT TESTED: this machine lets us start no containers (no CAP_SYS_ADMIN)");
    }
    possible
}

/// What kubelet mounts into the pod, relative to its root, and whether the pod may write there.
const VOLUMES: [(&str, &str); 3] =
    [("var/run/secrets/tokens", "ro"), ("var/run/secrets/istio", "ro"), ("var/run/secrets/workload-spiffe-uds", "rw")];
/// Not podman's own default, which the machine may not allow.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"];

/// What is asked of the container. The root is read-only, there are no capabilities and no new privileges.
#[derive(Clone, Debug)]
pub struct Containment {
    /// The image.
    pub image: String,
    /// User and group.
    pub user: (u32, u32),
    /// Limit of locked memory in bytes.
    pub memlock: u64,
    /// Limit of all memory, in podman's words.
    pub memory: String,
    /// A seccomp profile in place of the default one.
    pub seccomp: Option<PathBuf>,
    /// Further directories that are shown to it read-only: where, and where they are in the container.
    pub shown: Vec<(PathBuf, String)>,
    /// gVisor's runtime, which is a kernel of its own, in place of runc.
    pub gvisor: Option<PathBuf>,
}

impl Containment {
    /// An istio-proxy container with this image, and as little memory as the shim alone needs.
    pub fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            user: (UID, UID),
            memlock: MEMLOCK,
            memory: "16m".to_owned(),
            seccomp: None,
            shown: Vec::new(),
            gvisor: None,
        }
    }

    /// The sidecar's image with a configuration for its Envoy, which [`ENVOY_ARGUMENTS`] name.
    pub fn sidecar(image: &str, workload: &Workload) -> Result<Self, Failure> {
        let mut bootstrap = Bootstrap::new("sleep.foo", SdsTransport::EnvoyGrpc)
            .inbound(([127, 0, 0, 1], 9).into(), &[workload.spiffe_id()])
            .build();
        bootstrap["admin"]["address"]["pipe"]["path"] = format!("{SOCKET}-envoy").into();
        let configuration = workload.path().join("envoy");
        fs::create_dir(&configuration)
            .and_then(|()| fs::write(configuration.join("envoy.json"), bootstrap.to_string()))
            .or_fail("write Envoy's configuration")?;
        let mut containment = Self { memory: "256m".to_owned(), ..Self::new(image) };
        containment.shown.push((configuration, "/etc/envoy".to_owned()));
        Ok(containment)
    }

    /// podman and its arguments; what follows them is for the image's entrypoint.
    pub(crate) fn command(
        &self,
        name: &str,
        directory: &Path,
        env: &BTreeMap<String, String>,
    ) -> Result<(PathBuf, Vec<String>), Failure> {
        let program = program()?;
        let (uid, gid) = self.user;
        let mut arguments: Vec<String> = match &self.gvisor {
            // Its sandbox would have a network of its own; ours has the CA.
            Some(path) => {
                let [path, flag] = [&path.display().to_string(), "--runtime-flag"];
                ["--runtime", path, flag, "network=host", flag, "ignore-cgroups"].map(str::to_owned).to_vec()
            }
            None => runtime().map(str::to_owned).to_vec(),
        };
        // Without a log of podman's own: ours reads what comes.
        arguments.extend(["run", "--name", name, "--log-driver", "none", "--network", "host"].map(str::to_owned));
        arguments.extend(["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"].map(str::to_owned));
        arguments.extend(["--security-opt", "no-new-privileges"].map(str::to_owned));
        arguments.extend(LIMITS.map(str::to_owned));
        arguments.extend(["--ulimit".to_owned(), format!("memlock={0}:{0}", self.memlock)]);
        arguments.extend(["--memory", &self.memory, "--memory-swap", &self.memory].map(str::to_owned));
        arguments.extend(["--user".to_owned(), format!("{uid}:{gid}")]);
        if let Some(profile) = &self.seccomp {
            arguments.extend(["--security-opt".to_owned(), format!("seccomp={}", profile.display())]);
        }
        for (volume, access) in VOLUMES {
            let path = directory.join(volume);
            own(&path, uid, gid).or_fail(format!("give {} to uid {uid}", path.display()))?;
            if access == "rw" {
                // Anybody may write there, as in kubelet's.
                let open = fs::set_permissions(&path, fs::Permissions::from_mode(0o777));
                open.or_fail(format!("open {}", path.display()))?;
            }
            arguments.extend(["--volume".to_owned(), format!("{}:/{volume}:{access}", path.display())]);
        }
        for (path, inside) in &self.shown {
            arguments.extend(["--volume".to_owned(), format!("{}:{inside}:ro", path.display())]);
        }
        arguments.extend(env.iter().flat_map(|(name, value)| ["--env".to_owned(), format!("{name}={value}")]));
        arguments.push(self.image.clone());
        Ok((program, arguments))
    }
}

/// A container by its name; removed when this is dropped.
pub struct Container(String);

impl Container {
    pub(crate) fn named() -> Self {
        Self(unique("container"))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The number of its first process outside of it, once that runs.
    pub async fn pid(&self) -> Result<u32, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = podman(&["container", "inspect", "--format", "{{.State.Pid}}", &self.0]);
            match told.as_deref().map(|pid| pid.parse()) {
                Ok(Ok(pid)) if pid > 0 => return Ok(pid),
                _ if Instant::now() > deadline => {
                    return Err(Failure::new(format!("{} does not run: {told:?}", self.0)));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// A line of the status of its first process, in KiB or as it is.
    pub async fn status(&self, name: &str) -> Result<String, Failure> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid().await?)).or_fail("read the status")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = value.ok_or_else(|| Failure::new(format!("the status has no {name}")))?;
        Ok(value.trim().trim_end_matches(" kB").to_owned())
    }

    /// Runs a command in it, as a probe of kubelet does; fails unless its code is 0.
    pub async fn exec(&self, command: &[&str]) -> crate::Result {
        match self.run(command).await? {
            Output { code: Some(0), .. } => Ok(()),
            Output { code, lines } => {
                Err(Failure::new(format!("{command:?} ended with {code:?}")).with_log(&format!("{command:?}"), &lines))
            }
        }
    }

    /// Runs a command in it.
    pub async fn run(&self, command: &[&str]) -> Result<Output, Failure> {
        let words = [&runtime()[..], &["exec", &self.0], command].concat().into_iter().map(str::to_owned);
        let arguments: Vec<_> = words.collect();
        let mut process = Process::start("podman exec", &program()?, &arguments, &inherited(), &workspace())?;
        let code = process.wait_exit().await?.code();
        Ok(Output { code, lines: process.log().lines() })
    }
}

/// What a command in a container left.
#[derive(Debug)]
pub struct Output {
    /// Its exit code.
    pub code: Option<i32>,
    /// The lines that it wrote.
    pub lines: Vec<String>,
}

impl Drop for Container {
    fn drop(&mut self) {
        // One that never came to be is no news.
        let _ = podman(&["rm", "--force", "--time", "0", "--ignore", &self.0]);
    }
}

static TURN: Mutex<()> = Mutex::new(());

/// The images of `make image` under a name of their own; removed when this is dropped.
pub struct Images {
    repository: String,
    told: String,
}

impl Images {
    /// Builds them; the sidecar's as well if there is a base for it. The same source and time are the same image under
    /// several names, which podman does not let us make and remove at once: the time is another one each time.
    pub fn build(base: Option<&str>) -> Result<Self, Failure> {
        /// Above every process number (proc_pid_max(5)).
        const PROCESSES: u32 = 1 << 22;
        static BUILT: AtomicU32 = AtomicU32::new(0);
        Self::build_for(base, std::process::id() + PROCESSES * BUILT.fetch_add(1, Ordering::Relaxed), "")
    }

    /// As [`Images::build`], all their times being `time`, and beside them those with nothing but the shim for other
    /// platforms (`amd64 arm64`), whose binaries `make build ARCH=...` has made, with an index of all.
    pub fn build_for(base: Option<&str>, time: u32, platforms: &str) -> Result<Self, Failure> {
        let _turn = TURN.lock();
        let repository = format!("localhost/{}", unique("image"));
        let mut script = Command::new(workspace().join("packaging/image/build.sh"));
        script.args(base).env("IMAGE", &repository).env("SOURCE_DATE_EPOCH", time.to_string());
        script.env("PLATFORMS", platforms);
        let mut images = Self { repository, told: String::new() };
        images.told = output(&mut script)?;
        Ok(images)
    }

    /// The name of the image with nothing but the shim.
    pub fn binary(&self) -> String {
        format!("{}:{}", self.repository, env!("CARGO_PKG_VERSION"))
    }

    /// The name of the sidecar's image.
    pub fn sidecar(&self) -> String {
        format!("{}-sidecar", self.binary())
    }

    /// The name of the image with nothing but the shim for another platform.
    pub fn binary_for(&self, platform: &str) -> String {
        format!("{}-{platform}", self.binary())
    }

    /// The name of the index of all platforms.
    pub fn index(&self) -> String {
        format!("{}-index", self.binary())
    }

    /// What the build said.
    pub fn told(&self) -> &str {
        &self.told
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _turn = TURN.lock();
        let _ = podman(&["manifest", "rm", &self.index()]);
        for image in [self.sidecar(), self.binary_for("arm64"), self.binary_for("amd64"), self.binary()] {
            let _ = podman(&["rmi", "--ignore", &image]);
        }
    }
}

/// Runs podman and returns what it writes, without the end of the last line.
pub fn podman(arguments: &[&str]) -> Result<String, Failure> {
    output(Command::new(program()?).args(runtime()).args(arguments))
}

fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().or_fail(format!("run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Failure::new(format!("{command:?} failed: {}{}", text(&output.stdout), text(&output.stderr))))
}

fn program() -> Result<PathBuf, Failure> {
    let places = ["/usr/bin/podman", "/usr/local/bin/podman"].map(PathBuf::from);
    let found = places.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| Failure::new("podman is missing: run `make podman`"))
}

/// Debian's crun does not start containers everywhere where runc does.
fn runtime() -> [&'static str; 2] {
    ["--runtime", "runc"]
}

fn unique(what: &str) -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("sds-shim-test-{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// What podman needs of our environment: where its helpers and its files are.
pub(crate) fn inherited() -> Vec<(String, String)> {
    ["PATH", "HOME"].into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect()
}
