//! A control plane in small: it gives each Envoy its listeners and clusters over ADS, the aggregated stream of xDS.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sds_shim_proto::{
    envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    google::protobuf::Any,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::Streaming;

use super::{
    wire::{CLUSTER, LISTENER},
    xds::{Answer, Service, accept},
};
use crate::{Failure, OrFail, PATIENCE};

/// What one Envoy is to have.
#[derive(Clone, Default)]
pub struct Resources {
    /// Listeners, encoded.
    pub listeners: Vec<Any>,
    /// Clusters, encoded.
    pub clusters: Vec<Any>,
}

/// A running control plane; it stops, and its streams end, when it is dropped.
pub struct ControlPlane {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What became of the streams so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Streams that were opened.
    pub opened: usize,
    /// Streams that have ended.
    pub ended: usize,
    /// The version that each node (by its id) has accepted of each type.
    pub accepted: BTreeMap<(String, String), u64>,
    /// What was refused, in the Envoy's words.
    pub refused: Vec<String>,
}

struct Shared {
    resources: Mutex<BTreeMap<String, Resources>>,
    version: watch::Sender<u64>,
    seen: watch::Sender<Seen>,
}

impl ControlPlane {
    /// Serves HTTP/2 without TLS on a free loopback port, for the sidecar beside it.
    pub async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.or_fail("bind the control plane")?;
        let address = listener.local_addr().or_fail("bind the control plane")?;
        let shared = Arc::new(Shared {
            resources: Mutex::default(),
            version: watch::Sender::new(1),
            seen: watch::Sender::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What this node gets when it asks.
    pub fn set(&self, node: &str, resources: Resources) {
        self.shared.resources().insert(node.to_owned(), resources);
    }

    /// Sends everything to everybody anew, as another version, on the streams that are open.
    pub fn push(&self) -> u64 {
        self.shared.version.send_modify(|version| *version += 1);
        *self.shared.version.borrow()
    }

    /// What became of the streams so far.
    pub fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// Waits until so many nodes have accepted listeners and clusters of this version.
    pub async fn accepted(&self, nodes: usize, version: u64) -> crate::Result {
        let mut seen = self.shared.seen.subscribe();
        let all = |seen: &Seen| seen.accepted.values().filter(|accepted| **accepted >= version).count() >= 2 * nodes;
        let waited = timeout(PATIENCE, seen.wait_for(all)).await.is_ok();
        match waited {
            true => Ok(()),
            false => Err(Failure::new(format!("not all have accepted version {version}: {:?}", self.seen()))),
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn resources(&self) -> MutexGuard<'_, BTreeMap<String, Resources>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, node: &str, type_url: &str, version: u64) -> DiscoveryResponse {
        let resources = self.resources().get(node).cloned().unwrap_or_default();
        let resources = if type_url == LISTENER { resources.listeners } else { resources.clusters };
        let (version_info, nonce) = (version.to_string(), version.to_string());
        DiscoveryResponse { version_info, resources, type_url: type_url.to_owned(), nonce }
    }

    /// One stream, until its Envoy closes it or what it sends cannot be read.
    async fn follow(&self, mut requests: Streaming<DiscoveryRequest>, answers: mpsc::Sender<Answer>) {
        let mut version = self.version.subscribe();
        let (mut node, mut sent) = (String::new(), BTreeMap::<String, u64>::new());
        loop {
            let current = *version.borrow_and_update();
            for type_url in [CLUSTER, LISTENER] {
                let due = sent.get_mut(type_url).filter(|sent| **sent < current);
                if let Some(sent) = due {
                    *sent = current;
                    if answers.send(Ok(self.answer(&node, type_url, current))).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                _ = version.changed() => {}
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    if let Some(told) = &request.node {
                        node.clone_from(&told.id);
                    }
                    sent.entry(request.type_url.clone()).or_default();
                    self.note(&node, &request);
                }
            }
        }
    }

    fn note(&self, node: &str, request: &DiscoveryRequest) {
        let Ok(version) = request.response_nonce.parse() else { return };
        self.seen.send_modify(|seen| match &request.error_detail {
            Some(error) => seen.refused.push(format!("{node}: {}", error.message)),
            None => {
                seen.accepted.insert((node.to_owned(), request.type_url.clone()), version);
            }
        });
    }
}

impl Service for Shared {
    const PATH: &'static str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

    async fn converse(&self, requests: Streaming<DiscoveryRequest>, answers: mpsc::Sender<Answer>) {
        self.seen.send_modify(|seen| seen.opened += 1);
        self.follow(requests, answers).await;
        self.seen.send_modify(|seen| seen.ended += 1);
    }
}
