//! A node of a [`Cluster`] as users have them: kubelet, containerd, runc, kube-proxy and a cluster DNS, in namespaces and
//! control groups of its own, but in the network of the test, which so reaches pods and services. Needs root.
//!
//! All that it starts ends with it, also when the test is killed: then the next node removes the files and control groups.

mod files;
pub mod images;
mod reboot;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::json;
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::{
    Failure, OrFail, POLL,
    kubernetes::{Cluster, NODE_NAME, own_network},
    process::Process,
    workspace,
};

/// Its address, for itself and for the API server.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Where nodes have their files.
const PLACE: &str = "target/node";

/// Where the logs of the last node that failed are kept.
const LOGS: &str = "target/node-logs";

/// How long what kubelet does may take on a loaded machine; it only bounds failures.
pub const KUBELET: Duration = Duration::from_secs(240);

/// The programs that it keeps running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `containerd`
    Containerd,
    /// `kubelet`
    Kubelet,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Containerd => "containerd",
            Program::Kubelet => "kubelet",
        }
    }
}

/// Whether this machine can run a node. Where it cannot, the reasons are printed, and it is an error where the node must not
/// go untested (`REQUIRE_NODE`): containers in which changes are tested often allow none.
pub fn possible() -> bool {
    let told = fs::create_dir_all(workspace().join(PLACE)).and_then(|()| {
        let check = workspace().join("tests/node/check.sh");
        std::process::Command::new(check).arg(workspace().join(PLACE)).output()
    });
    let reasons = match told {
        Ok(told) if told.status.success() => return true,
        Ok(told) => String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr),
        Err(error) => error.to_string(),
    };
    let reasons = reasons.trim_end();
    assert!(std::env::var_os("REQUIRE_NODE").is_none(), "this machine cannot run a node of Kubernetes:\n{reasons}");
    eprintln!("NOT TESTED: this machine cannot run a node of Kubernetes:\n{reasons}");
    false
}

/// A running node; it ends when it is dropped.
pub struct Node {
    // In this order: the processes end before their groups and files are removed.
    process: Process,
    _remains: Remains,
    directory: PathBuf,
    init: u32,
    started: Duration,
}

impl Node {
    /// Takes this thread into a network of its own, and starts a control plane and the only node of it there. Returns once
    /// the node is ready and has the images.
    pub async fn start() -> Result<(Cluster, Self), Failure> {
        own_network(&[])?;
        network().await?;
        let remains = Remains::of(std::process::id())?;
        let begun = Instant::now();
        let cluster = Cluster::start_with_node(ADDRESS).await?;
        let [directory, name] = [remains.directory.clone(), remains.name.clone().into()];
        files::write(&directory, NODE_NAME, ADDRESS, [&program("kubernetes", "kubelet")?, &plugins()?])?;
        fs::write(directory.join("kubelet.held"), "").or_fail("hold kubelet back")?;
        std::os::unix::fs::symlink(plugins()?, directory.join("plugins")).or_fail("name the plugins")?;
        for (from, to) in cluster.kubeconfigs().iter().zip(["admin.kubeconfig", "node.kubeconfig"]) {
            fs::copy(from, directory.join(to)).or_fail(format!("copy {to}"))?;
        }
        let script = workspace().join("tests/node/start.sh");
        let words = ["--pdeathsig", "KILL", "--"].map(PathBuf::from).into_iter();
        let words = words.chain([script, "run".into(), name, directory.clone()]);
        let words: Vec<_> = words.map(|word| word.display().to_string()).collect();
        let environment = [("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
        let setpriv = Path::new("/usr/bin/setpriv");
        let process = Process::start("the node", setpriv, &words, &environment, &directory)?;
        let mut node = Self { process, _remains: remains, directory, init: 0, started: Duration::ZERO };
        if let Err(failure) = node.come_up(&cluster).await {
            let seen = ["get", "node", "-o", "jsonpath={.items[*].spec.taints} {.items[*].status.conditions}"];
            let seen = cluster.kubectl(&seen).await.unwrap_or_else(|failure| failure.to_string());
            return Err(cluster.explain(node.explain(failure)).with_log("what the node says of itself", &[seen]));
        }
        node.started = begun.elapsed();
        Ok((cluster, node))
    }

    /// How long it took from the start of etcd until the node was ready and had its images.
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Runs a command inside, and returns what it wrote; fails unless its exit code is 0.
    pub async fn exec(&self, command: &[&str]) -> Result<String, Failure> {
        let pid = self.init.to_string();
        let tools = format!("{}:{}", plugins()?.display(), "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut process = Command::new("nsenter");
        process.args(["--target", &pid, "--mount", "--pid", "--cgroup", "--"]).args(command);
        process.env_clear().env("PATH", tools).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(KUBELET, process.output()).await;
        let output = output.or_fail(format!("run {command:?}"))?.or_fail("run nsenter")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(Failure::new(format!("{command:?}: {}{}", text(&output.stdout), text(&output.stderr)))),
        }
    }

    /// Starts a further program that finds the node's files; it ends with what this returns.
    pub fn start_program(&self, name: &str, command: &[&str]) -> Result<Process, Failure> {
        let pid = self.init.to_string();
        // Among the node's processes it would be a child of nsenter, which hands no signal on.
        let words = ["--pdeathsig", "KILL", "--", "nsenter", "--target", &pid, "--mount", "--"];
        let words: Vec<_> = [&words[..], command].concat().into_iter().map(str::to_owned).collect();
        let environment = [("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
        Process::start(name, Path::new("/usr/bin/setpriv"), &words, &environment, &self.directory)
    }

    /// SIGKILL for one of its programs, which is started again at once.
    pub async fn kill(&self, program: Program) -> crate::Result {
        let before = self.pid(program).ok_or_else(|| Failure::new(format!("{} does not run", program.name())))?;
        self.exec(&["kill", "-KILL", &before]).await?;
        self.until(&format!("another {}", program.name()), || self.pid(program).filter(|pid| *pid != before)).await?;
        Ok(())
    }

    /// How much memory containers may lock from the next start of containerd on, in KiB.
    pub async fn limit_locked_memory(&self, kib: u64) -> crate::Result {
        fs::write(self.directory.join("memlock"), format!("{kib}\n")).or_fail("write the limit")?;
        self.kill(Program::Containerd).await?;
        self.containerd().await
    }

    /// Where a file of the node's is for the test, its processes in `/proc` among them.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.init).into()
    }

    /// Gives it one of the seccomp profiles that are shipped.
    pub fn take_seccomp_profile(&self, name: &str) -> crate::Result {
        let directory = self.directory.join("kubelet/seccomp");
        fs::create_dir_all(&directory).or_fail("make kubelet's directory of profiles")?;
        let shipped = workspace().join("packaging/seccomp").join(name);
        fs::copy(shipped, directory.join(name)).or_fail(format!("copy {name}")).map(drop)
    }

    /// The directory in which kubelet keeps what containers write.
    pub fn container_logs(&self) -> PathBuf {
        self.directory.join("pods")
    }

    /// The log of one of its programs.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.directory.join("log").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// Adds the ends of its programs' logs to a failure, and keeps the whole of them in `target/node-logs`.
    pub fn explain(&self, failure: Failure) -> Failure {
        let logs = ["kubelet", "containerd", "kube-proxy", "cluster-dns"];
        let kept = workspace().join(LOGS);
        let _ = fs::remove_dir_all(&kept);
        let _ = std::process::Command::new("cp").arg("-r").arg(self.directory.join("log")).arg(&kept).status();
        let failure = self.process.explain(failure);
        logs.iter().fold(failure, |failure, name| failure.with_log(name, &self.log(name)))
    }

    async fn come_up(&mut self, cluster: &Cluster) -> crate::Result {
        let parent = self.process.pid();
        let children = PathBuf::from(format!("/proc/{parent}/task/{parent}/children"));
        let child = || fs::read_to_string(&children).ok()?.trim().parse().ok();
        // Only then is it the one child of the process that we started: a script that had others before.
        self.until("containerd", || self.pid(Program::Containerd)).await?;
        self.init = self.until("a first process", child).await?;
        self.containerd().await?;
        self.load_images().await?;
        // A kubelet whose node is registered late, because containerd is busy with images for 20 s, looks at its CSINode
        // two minutes later, and until then the node is not ready.
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE_NAME } });
        cluster.create(&object).await?;
        self.release(Program::Kubelet).await?;
        // Pods come once a controller has seen it as well: the scheduler waits for that.
        let node = format!("node/{NODE_NAME}");
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=280s", &node]).await.map(drop)
    }

    async fn containerd(&self) -> crate::Result {
        let deadline = Instant::now() + KUBELET;
        let version = ["ctr", "--address", "/run/containerd/containerd.sock", "version"];
        while let Err(failure) = self.exec(&version).await {
            if Instant::now() > deadline {
                return Err(failure);
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// While this is there, the program is not started (tests/node/init.sh).
    fn held(&self, program: Program) -> PathBuf {
        self.directory.join(format!("{}.held", program.name()))
    }

    fn pid(&self, program: Program) -> Option<String> {
        let text = fs::read_to_string(self.directory.join(format!("{}.pid", program.name()))).ok()?;
        Some(text.trim().to_owned())
    }

    /// Waits for what nobody announces.
    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + KUBELET;
        loop {
            match look() {
                Some(seen) => return Ok(seen),
                None if Instant::now() > deadline => return Err(Failure::new(format!("the node has not {what}"))),
                None => sleep(POLL).await,
            }
        }
    }
}

/// What a node leaves behind: removed when this is dropped, and by the next node when that never came to be.
struct Remains {
    name: String,
    directory: PathBuf,
}

impl Remains {
    const PREFIX: &str = "sds-shim-node-";

    /// A place for the node of a test with this process id.
    fn of(pid: u32) -> Result<Self, Failure> {
        clear_up()?;
        let name = format!("{}{pid}", Self::PREFIX);
        let directory = workspace().join(PLACE).join(&name);
        // The node that the same test had before.
        drop(Self { name: name.clone(), directory: directory.clone() });
        fs::create_dir(&directory).or_fail(format!("make {}", directory.display()))?;
        Ok(Self { name, directory })
    }
}

/// Removes what the nodes of killed tests have left: files, control groups, and whatever still runs in these.
pub fn clear_up() -> crate::Result {
    let place = workspace().join(PLACE);
    fs::create_dir_all(&place).or_fail("make a directory for nodes")?;
    for entry in fs::read_dir(&place).or_fail("list the nodes of before")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(Remains::PREFIX).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Remains { name, directory: entry.path() });
        }
    }
    Ok(())
}

impl Drop for Remains {
    fn drop(&mut self) {
        let script = workspace().join("tests/node/start.sh");
        let _ = std::process::Command::new(script).args(["clean", &self.name]).status();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// The node's own address, and a way out: kubelet and the API server look for one.
async fn network() -> crate::Result {
    let address = format!("{ADDRESS}/24");
    let commands: [&[&str]; 4] = [
        &["link", "add", "node", "type", "bridge"],
        &["addr", "add", &address, "dev", "node"],
        &["link", "set", "node", "up"],
        &["route", "add", "default", "via", "10.99.0.254", "dev", "node"],
    ];
    for command in commands {
        let ran =
            Command::new("ip").args(command).output().await.or_fail("run ip, which `make pod-network` installs")?;
        if !ran.status.success() {
            return Err(Failure::new(format!("ip {command:?}: {}", String::from_utf8_lossy(&ran.stderr))));
        }
    }
    Ok(())
}

fn plugins() -> Result<PathBuf, Failure> {
    program("node-programs", "containerd")
}

/// The directory below `target` with this program.
fn program(directory: &str, name: &str) -> Result<PathBuf, Failure> {
    let directory = workspace().join("target").join(directory);
    match directory.join(name).exists() {
        true => Ok(directory),
        false => Err(Failure::new(format!("{name} is missing in {}: run `make kubernetes node`", directory.display()))),
    }
}
