//! A small kubelet: it runs pods as Kubernetes' API gives them by podman, on a node with a network of its own.
//!
//! What it understands of a pod it does as kubelet and the usual container runtimes do it; what it does not understand
//! it refuses. Nothing happens behind a test's back: containers that end are not started again, and volumes are written
//! anew, and liveness is probed, when the test says so. Needs root, podman and iptables.

mod facts;
mod links;
mod manifest;
mod network;
mod pod;
mod probe;
mod quantity;
mod recipe;
mod sandbox;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{Failure, OrFail, container::podman};
use links::Link;
use manifest::{Metadata, Service};
use network::Network;
use sandbox::Sandbox;

pub use pod::{Exit, RunningPod};

/// The domain of the cluster's names.
const DOMAIN: &str = "cluster.local";
const LABELS: [&str; 3] = ["io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name"];
const NODE_LABEL: &str = "sds-shim.test-node";
/// Number of the first pod and of the first service: the last part of their addresses.
const FIRST: u8 = 20;

/// What a pod asks the API server for.
pub trait Cluster: Send + Sync {
    /// A token of a service account, as TokenRequest gives it.
    fn token(&self, wish: &TokenWish<'_>) -> Result<String, Failure>;
    /// The data of a ConfigMap, if there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure>;
    /// The data of a Secret, decoded, if there is one.
    fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure>;
}

/// A token that a pod asks for.
pub struct TokenWish<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The service account.
    pub service_account: &'a str,
    /// The pod to which it is bound.
    pub pod: &'a str,
    /// The pod's UID.
    pub uid: &'a str,
    /// For whom; the API server when it is not said.
    pub audience: Option<&'a str>,
    /// How long it lasts.
    pub expiration_seconds: u64,
}

/// A node with its network. Pods end before it.
pub struct Node {
    tasks: Mutex<JoinSet<()>>,
    network: Network,
    sandbox: Sandbox,
    cluster: Arc<dyn Cluster>,
    images: BTreeMap<String, String>,
    pause: String,
    directory: PathBuf,
    services: Mutex<Vec<Placed>>,
    pods: AtomicU8,
}

/// A service and its address.
struct Placed {
    service: Service,
    address: Ipv4Addr,
}

impl Node {
    /// The node's own address, where pods reach what listens [inside](Node::inside).
    pub const ADDRESS: Ipv4Addr = network::NODE;

    /// A node without pods, whose files are below `directory`. `pause` is a local image that does nothing.
    pub async fn start(directory: &Path, pause: &str, cluster: Arc<dyn Cluster>) -> Result<Self, Failure> {
        let sandbox = Sandbox::start(pause, "node", &[])?;
        Ok(Self {
            tasks: Mutex::default(),
            network: Network::new(sandbox.pid()).await?,
            sandbox,
            cluster,
            images: BTreeMap::new(),
            pause: pause.to_owned(),
            directory: directory.to_owned(),
            services: Mutex::default(),
            pods: AtomicU8::new(FIRST),
        })
    }

    /// The container that holds its network.
    pub fn name(&self) -> &str {
        self.sandbox.name()
    }

    /// Which local image a manifest means by this name; no registry is asked.
    pub fn image(&mut self, name: impl Into<String>, local: impl Into<String>) {
        self.images.insert(name.into(), local.into());
    }

    /// Runs a future in the node's network: the sockets that it makes are there.
    pub async fn inside<F>(&self, future: F) -> Result<F::Output, Failure>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        network::inside(self.sandbox.pid(), future).await
    }

    /// Has this name of a service lead to the node itself, where its server listens [inside](Node::inside).
    pub fn serve(&self, name: &str, namespace: &str) {
        self.network.name(qualified(name, namespace), network::NODE);
    }

    /// Leads connections to a port of the node to a server outside of its network.
    pub async fn forward(&self, port: u16, target: SocketAddr) -> crate::Result {
        let listener = self.inside(TcpListener::bind((network::NODE, port))).await?;
        let listener = listener.or_fail(format!("listen on the node's port {port}"))?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        // Whoever breaks it off, the other sees it.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(())
    }

    /// Gives a service, as the API gives it, a name and an address, which lead to the ready pod that it selects: there
    /// may be one.
    pub fn service(&self, service: &Value) -> crate::Result {
        let service: Service = serde::Deserialize::deserialize(service).or_fail("read the Service")?;
        let mut services = self.services();
        let number = u8::try_from(services.len()).ok().and_then(|count| FIRST.checked_add(count));
        let number = number.ok_or_else(|| Failure::new("too many services"))?;
        let address = Ipv4Addr::new(10, 96, 0, number);
        self.network.name(qualified(&service.metadata.name, &service.metadata.namespace), address);
        services.push(Placed { service, address });
        Ok(())
    }

    /// Runs a pod and returns once it is ready.
    pub async fn run(&self, pod: &Value) -> Result<RunningPod, Failure> {
        let pod: manifest::Pod = serde::Deserialize::deserialize(pod).or_fail("read the Pod")?;
        let name = format!("{}.{}", pod.metadata.name, pod.metadata.namespace);
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let started = RunningPod::start(self, pod, number).await;
        started.map_err(|failure| failure.context(format!("pod {name}")))
    }

    /// Containers of its pods that podman knows, running or not, as `POD.NAMESPACE/CONTAINER`; the one that holds a
    /// pod's namespaces is called `POD`.
    pub fn containers(&self) -> Result<BTreeSet<String>, Failure> {
        let filter = format!("label={NODE_LABEL}={}", self.sandbox.name());
        let [pod, namespace, container] = LABELS.map(|label| format!("{{{{index .Labels {label:?}}}}}"));
        let format = format!("{pod}.{namespace}/{container}");
        let listed = podman(&["ps", "--all", "--filter", &filter, "--format", &format])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// How many network namespaces are joined to it: those of its pods, and of deleted ones until the kernel has cleared
    /// them away, which it does when their last process has ended.
    pub fn joined(&self) -> Result<usize, Failure> {
        self.network.joined()
    }

    /// podman's labels of a container: those of Kubernetes' container runtimes, and whose node it is.
    fn labels(&self, metadata: &Metadata, container: &str) -> Vec<String> {
        let names = [metadata.name.as_str(), metadata.namespace.as_str(), container];
        let labels = LABELS.iter().zip(names).map(|(label, name)| format!("{label}={name}"));
        labels.chain([format!("{NODE_LABEL}={}", self.sandbox.name())]).collect()
    }

    /// The local image that is meant by this name.
    fn local_image(&self, name: &str) -> Result<&str, Failure> {
        let known = self.images.get(name).map(String::as_str);
        known.ok_or_else(|| Failure::new(format!("the node has no image {name}")))
    }

    /// Services that a pod of this namespace is told about in variables: those of its namespace if it wants them, and
    /// the API server's.
    fn links(&self, namespace: &str, wanted: bool) -> BTreeMap<String, String> {
        let services = self.services();
        let told = services.iter().filter(|placed| {
            let metadata = &placed.service.metadata;
            (metadata.namespace == "default" && metadata.name == "kubernetes")
                || (wanted && metadata.namespace == namespace)
        });
        told.flat_map(|placed| Link { service: &placed.service, address: placed.address }.variables()).collect()
    }

    fn services(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn qualified(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.{DOMAIN}")
}
