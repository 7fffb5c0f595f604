//! A pod that runs.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Cluster, DOMAIN, Node,
    facts::Facts,
    manifest::{self, Hook},
    network::{NAMESERVER, Network, capture, inside},
    probe::Target,
    recipe::Surroundings,
    sandbox::Sandbox,
    volumes::Volumes,
};
use crate::{
    Failure, OrFail, PATIENCE, POLL,
    container::{Container, Output, inherited, podman, program},
    http,
    process::Process,
};

/// Kubernetes' own default.
const GRACE: u64 = 30;
/// Each container has this long in any case, however late its turn comes.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// What has Istio's CNI plugin lead connections through the sidecar.
const CAPTURE: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Ports that it leaves alone, with commas between them.
const EXCLUDED: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

/// A running pod; removed when this is dropped.
pub struct RunningPod {
    // Fields drop in this order: containers before what they use.
    running: Vec<Running>,
    sandbox: Sandbox,
    volumes: Volumes,
    pod: manifest::Pod,
    cluster: Arc<dyn Cluster>,
    directory: PathBuf,
    links: BTreeMap<String, String>,
    uid: String,
    address: Ipv4Addr,
    node: u32,
}

/// A container of it.
struct Running {
    name: String,
    process: Process,
    container: Container,
    pid_file: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Initial,
    Sidecar,
    Application,
}

/// How a container ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// The container's name in the manifest.
    pub container: String,
    /// Its exit code.
    pub code: Option<i32>,
}

impl RunningPod {
    pub(super) async fn start(node: &Node, pod: manifest::Pod, number: u8) -> Result<Self, Failure> {
        let metadata = &pod.metadata;
        let address = Ipv4Addr::new(10, 244, 0, number);
        let directory = node.directory.join(format!("{}.{}-{number}", metadata.name, metadata.namespace));
        fs::create_dir_all(&directory).or_fail(format!("create {}", directory.display()))?;
        let uid = metadata.uid.clone().unwrap_or_else(|| format!("00000000-0000-4000-8000-{number:012}"));
        let links = node.links(&metadata.namespace, pod.spec.enable_service_links != Some(false));
        let sandbox = Sandbox::start(&node.pause, &metadata.name, &node.labels(metadata, "POD"))?;
        node.network.join(sandbox.pid(), address)?;
        if metadata.annotations.get(CAPTURE).is_some_and(|ports| ports == "*") {
            capture(sandbox.pid(), &excluded(&metadata.annotations)?)?;
        }
        name_service(&directory, &metadata.name, &metadata.namespace, address)?;
        let facts = Facts { pod: &pod, uid: uid.clone(), address, links: &links };
        let volumes = Volumes::create(&directory.join("volumes"), &facts, &*node.cluster)?;
        let cluster = Arc::clone(&node.cluster);
        let node_pid = node.network.node();
        let mut started = Self {
            running: Vec::new(),
            sandbox,
            volumes,
            pod,
            cluster,
            directory,
            links,
            uid,
            address,
            node: node_pid,
        };
        match started.bring_up(node).await {
            Ok(()) => Ok(started),
            Err(failure) => Err(started.explain(failure)),
        }
    }

    async fn bring_up(&mut self, node: &Node) -> crate::Result {
        for index in 0..self.pod.spec.init_containers.len() {
            let sidecar = self.pod.spec.init_containers[index].restart_policy.is_some();
            let kind = if sidecar { Kind::Sidecar } else { Kind::Initial };
            self.launch(node, kind, index).await?;
        }
        for index in 0..self.pod.spec.containers.len() {
            self.launch(node, Kind::Application, index).await?;
        }
        for running in &mut self.running {
            let Some(manifest) = self.pod.container(&running.name) else { continue };
            let probes = [manifest.startup_probe.as_ref(), manifest.readiness_probe.as_ref()];
            for probe in probes.into_iter().flatten().filter(|_| running.kind != Kind::Initial) {
                let (container, ports) = (&running.container, &manifest.ports[..]);
                let target = Target { container, ports, address: self.address, node: self.node };
                let ready = target.wait_for(probe, &mut running.process).await;
                ready.map_err(|failure| failure.context(format!("{} does not become ready", running.name)))?;
            }
        }
        self.endpoints(node, Network::endpoint)
    }

    /// Starts a container and waits for as long as the next one has to.
    async fn launch(&mut self, node: &Node, kind: Kind, index: usize) -> crate::Result {
        let manifest = match kind {
            Kind::Application => &self.pod.spec.containers[index],
            Kind::Initial | Kind::Sidecar => &self.pod.spec.init_containers[index],
        };
        let context = |failure: Failure| failure.context(format!("container {}", manifest.name));
        let container = Container::named();
        let pid_file = self.directory.join(format!("{}.pid", container.name()));
        let facts = self.facts();
        let labels = node.labels(&self.pod.metadata, &manifest.name);
        let surroundings = Surroundings {
            labels: &labels,
            facts: &facts,
            cluster: &*self.cluster,
            volumes: &self.volumes,
            sandbox: self.sandbox.name(),
            directory: &self.directory,
        };
        let image = node.local_image(&manifest.image).map_err(context)?;
        let arguments = surroundings.arguments(manifest, container.name(), image, &pid_file).map_err(context)?;
        let title = format!("{} of {}", manifest.name, self.name());
        let process = Process::start(&title, &program()?, &arguments, &inherited(), &self.directory)?;
        let mut running = Running { name: manifest.name.clone(), process, container, pid_file, kind };
        let up = match kind {
            Kind::Initial => running.complete().await,
            Kind::Sidecar | Kind::Application => running.up(manifest, self.address, self.node).await,
        };
        self.running.push(running);
        up.map_err(|failure| self.explain(failure))
    }

    /// `NAME.NAMESPACE`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.pod.metadata.name, self.pod.metadata.namespace)
    }

    /// Its address, which is reached from the other pods and [inside](Node::inside) of the node.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Names of its containers, in the order in which they were started.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.running.iter().map(|running| running.name.as_str())
    }

    /// The process of a container, which is podman's: its log is the container's.
    pub fn process(&self, container: &str) -> Result<&Process, Failure> {
        Ok(&self.running(container)?.process)
    }

    /// A container, for what podman knows of it.
    pub fn container(&self, container: &str) -> Result<&Container, Failure> {
        Ok(&self.running(container)?.container)
    }

    /// The number of a container's first process outside of it.
    pub fn pid(&self, container: &str) -> Result<u32, Failure> {
        self.running(container)?.pid().ok_or_else(|| Failure::new(format!("{container} has not run")))
    }

    /// Runs a command in a container.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<Output, Failure> {
        self.running(container)?.container.run(command).await
    }

    /// Asks a container's liveness probe once.
    pub async fn live(&self, container: &str) -> crate::Result {
        let manifest = self.pod.container(container);
        let probe = manifest.and_then(|manifest| Some((manifest.liveness_probe.as_ref()?, &manifest.ports[..])));
        let (probe, ports) = probe.ok_or_else(|| Failure::new(format!("{container} has no liveness probe")))?;
        let container = &self.running(container)?.container;
        Target { container, ports, address: self.address, node: self.node }.ask(probe).await
    }

    /// `GET path` at a loopback port of the pod.
    pub async fn get(&self, port: u16, path: &str) -> Result<http::Answer, Failure> {
        let (address, path) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path.to_owned());
        let answer = inside(self.sandbox.pid(), async move {
            let stream = TcpStream::connect(address).await.or_fail(format!("connect to {address} in the pod"))?;
            http::get(stream, "localhost", &path).await
        });
        answer.await?
    }

    /// Where a volume is outside of the pod.
    pub fn volume(&self, name: &str) -> Result<PathBuf, Failure> {
        Ok(self.volumes.path(name)?.0)
    }

    /// Writes the files of its volumes anew, with new tokens.
    pub fn refresh(&self) -> crate::Result {
        self.volumes.refresh(&self.facts(), &*self.cluster)
    }

    /// Deletes it as kubelet does: the containers at first, then the sidecars in the opposite order of their start, each
    /// with a hook and SIGTERM, and all within the time of grace; who is still there then is killed. Returns how they
    /// ended, in this order.
    pub async fn delete(mut self, node: &Node) -> Result<Vec<Exit>, Failure> {
        self.endpoints(node, Network::no_endpoint)?;
        let grace = self.pod.spec.termination_grace_period_seconds.unwrap_or(GRACE);
        let last = Instant::now() + Duration::from_secs(grace);
        let turn = || last.max(Instant::now() + LEAST_GRACE);
        let mut exits = Vec::new();
        let of = |kind: Kind| move |running: &&mut Running| running.kind == kind;
        let deadline = turn();
        for running in self.running.iter_mut().filter(of(Kind::Application)) {
            let hook = self.pod.container(&running.name).and_then(|manifest| manifest.lifecycle.pre_stop.as_ref());
            running.ask_to_end(hook, deadline).await?;
        }
        for running in self.running.iter_mut().filter(of(Kind::Application)) {
            exits.push(running.end(deadline).await?);
        }
        for running in self.running.iter_mut().rev().filter(of(Kind::Sidecar)) {
            let deadline = turn();
            let hook = self.pod.container(&running.name).and_then(|manifest| manifest.lifecycle.pre_stop.as_ref());
            running.ask_to_end(hook, deadline).await?;
            exits.push(running.end(deadline).await?);
        }
        Ok(exits)
    }

    /// Adds the logs of its containers.
    pub fn explain(&self, failure: Failure) -> Failure {
        self.running.iter().fold(failure, |failure, running| running.process.explain(failure))
    }

    fn running(&self, name: &str) -> Result<&Running, Failure> {
        let found = self.running.iter().find(|running| running.name == name);
        found.ok_or_else(|| Failure::new(format!("{} has no container {name:?}", self.name())))
    }

    fn facts(&self) -> Facts<'_> {
        Facts { pod: &self.pod, uid: self.uid.clone(), address: self.address, links: &self.links }
    }

    /// Does this with the ports of each service that selects the pod.
    fn endpoints(
        &self,
        node: &Node,
        with: impl Fn(&Network, (Ipv4Addr, u16), (Ipv4Addr, u16)) -> crate::Result,
    ) -> crate::Result {
        for placed in node.services().iter() {
            let (metadata, spec) = (&placed.service.metadata, &placed.service.spec);
            let selected = !spec.selector.is_empty()
                && spec.selector.iter().all(|(name, value)| self.pod.metadata.labels.get(name) == Some(value));
            for port in spec.ports.iter().filter(|_| selected && metadata.namespace == self.pod.metadata.namespace) {
                let named = self.pod.spec.containers.iter().chain(&self.pod.spec.init_containers);
                let named = named.flat_map(|container| &container.ports);
                let inner = port.target_port.as_ref().map_or(Ok(port.port), |target| target.number(named))?;
                with(&node.network, (placed.address, port.port), (self.address, inner))?;
            }
        }
        Ok(())
    }
}

impl Running {
    fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }

    /// Waits until an init container has done its work.
    async fn complete(&mut self) -> crate::Result {
        match self.process.wait_exit().await? {
            status if status.success() => Ok(()),
            status => Err(Failure::new(format!("{} ended with {status}", self.name))),
        }
    }

    /// Waits until it runs, its hook has ended, and, of a sidecar, the start-up probe has succeeded.
    async fn up(&mut self, manifest: &manifest::Container, address: Ipv4Addr, node: u32) -> crate::Result {
        let deadline = Instant::now() + PATIENCE;
        while self.pid().is_none() {
            if self.process.exited().is_some() || Instant::now() > deadline {
                self.process.wait_exit().await?;
                return Err(Failure::new(format!("{} does not run", self.name)));
            }
            sleep(POLL).await;
        }
        if let Some(Hook { exec }) = &manifest.lifecycle.post_start {
            let words: Vec<_> = exec.command.iter().map(String::as_str).collect();
            self.container.exec(&words).await.map_err(|failure| failure.context("the hook after the start"))?;
        }
        match &manifest.startup_probe {
            Some(probe) if self.kind == Kind::Sidecar => {
                let target = Target { container: &self.container, ports: &manifest.ports, address, node };
                let started = target.wait_for(probe, &mut self.process).await;
                started.map_err(|failure| failure.context(format!("{} does not start", self.name)))
            }
            _ => Ok(()),
        }
    }

    /// The hook before the end, and SIGTERM.
    async fn ask_to_end(&mut self, hook: Option<&Hook>, deadline: Instant) -> crate::Result {
        if self.process.exited().is_some() {
            return Ok(());
        }
        if let Some(Hook { exec }) = hook {
            let words: Vec<_> = exec.command.iter().map(String::as_str).collect();
            // Neither its failure nor its slowness keeps kubelet from going on.
            drop(timeout_at(deadline, self.container.exec(&words)).await);
        }
        self.process.signal(Signal::SIGTERM)
    }

    async fn end(&mut self, deadline: Instant) -> Result<Exit, Failure> {
        let status = match timeout_at(deadline, self.process.wait_exit()).await {
            Ok(status) => status?,
            Err(_) => {
                // One that has ended in this moment cannot be killed, and need not.
                let _ = podman(&["kill", "--signal", "KILL", self.container.name()]);
                self.process.wait_exit().await?
            }
        };
        Ok(Exit { container: self.name.clone(), code: status.code() })
    }
}

/// The files by which containers find names.
fn name_service(directory: &Path, pod: &str, namespace: &str, address: Ipv4Addr) -> crate::Result {
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{pod}\n");
    let resolver =
        format!("search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\nnameserver {NAMESERVER}\noptions ndots:5\n");
    for (name, content) in [("hosts", hosts), ("resolv.conf", resolver)] {
        fs::write(directory.join(name), content).or_fail(format!("write {name}"))?;
    }
    Ok(())
}

fn excluded(annotations: &BTreeMap<String, String>) -> Result<Vec<u16>, Failure> {
    let ports = annotations.get(EXCLUDED).map(String::as_str).unwrap_or_default();
    let ports = ports.split(',').map(str::trim).filter(|port| !port.is_empty());
    ports.map(|port| port.parse().or_fail(format!("read {port:?} in {EXCLUDED}"))).collect()
}
