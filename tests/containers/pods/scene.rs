//! The node, its images and its CA, and the four pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, Ordering},
    },
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    container::{Images, ProgramImage, podman},
    development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest},
    kubelet::{Cluster, Node, RunningPod, TokenWish},
    scratch::Scratch,
    workload::spiffe_id,
    workspace,
};
use tokio::time::{Instant, sleep};

pub(crate) const NAMESPACES: [&str; 2] = ["foo", "bar"];
/// Port of the CA, istiod's.
const CA_PORT: u16 = 15012;
/// Port of the application in the pod of httpbin.
const APPLICATION: u16 = 8080;

/// How connections find the sidecar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The application is told a proxy, and the service leads to the sidecar's port, as the chart has it.
    Listeners,
    /// iptables leads there.
    Iptables,
}

/// A node with all that its pods need.
pub(crate) struct Scene {
    // Fields drop in this order: containers before images.
    pub(crate) node: Node,
    pub(crate) ca: DevelopmentCa,
    way: Way,
    images: Arc<PodImages>,
    scratch: Scratch,
}

/// What the API server would give kubelet.
struct Answers {
    tokens: Arc<TokenIssuer>,
    maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Each token lasts a minute longer than the one before, so that they can be told apart.
    minutes: AtomicI64,
}

impl Cluster for Answers {
    fn token(&self, wish: &TokenWish<'_>) -> Result<String, Failure> {
        let audience = wish.audience.ok_or_else(|| Failure::new("a token for the API server"))?;
        let more = self.minutes.fetch_add(1, Ordering::Relaxed) * 60;
        Ok(self.tokens.mint(&TokenRequest {
            audiences: vec![audience.to_owned()],
            lifetime: i64::try_from(wish.expiration_seconds).unwrap_or(i64::MAX / 2) + more,
            ..TokenRequest::new(wish.namespace, wish.service_account)
        }))
    }

    fn config_map(&self, _: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        Ok(self.maps.get(name).cloned())
    }

    fn secret(&self, _: &str, _: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        Ok(None)
    }
}

impl Scene {
    pub(crate) async fn start(way: Way) -> Result<Self, Failure> {
        let scratch = Scratch::new("pods")?;
        let images = PodImages::shared()?;
        let (pki, tokens) = (Arc::new(Pki::new("pods")), Arc::new(TokenIssuer::new()));
        let configuration: BTreeMap<String, String> =
            serde_json::from_value(read("configuration")?["data"].clone()).or_fail("read the ConfigMap")?;
        let root = BTreeMap::from([("root-cert.pem".to_owned(), pki.root_pem())]);
        let maps = [("sds-shim", configuration), ("istio-ca-root-cert", root)];
        let answers = Answers {
            tokens: Arc::clone(&tokens),
            maps: maps.map(|(name, map)| (name.to_owned(), map)).into(),
            minutes: AtomicI64::new(0),
        };
        let mut node = Node::start(scratch.path(), images.applications.name(), Arc::new(answers)).await?;
        let options = CaOptions { listen: (Node::ADDRESS, CA_PORT).into(), ..CaOptions::default() };
        let ca = node.inside(DevelopmentCa::start(pki, tokens, options)).await?.or_fail("start the CA")?;
        node.serve("istiod", "istio-system");
        node.image(format!("localhost/sds-shim:{}", env!("CARGO_PKG_VERSION")), images.shim.binary());
        for (name, image) in [
            ("docker.io/envoyproxy/envoy:distroless-v1.40.0", &images.envoy),
            ("docker.io/mccutchen/go-httpbin:v2.15.0", &images.applications),
            ("docker.io/curlimages/curl:8.11.1", &images.applications),
        ] {
            node.image(name, image.name());
        }
        Ok(Self { node, ca, way, images, scratch })
    }

    /// Starts the servers, then the clients.
    pub(crate) async fn mesh(&self) -> Result<Mesh, Failure> {
        for namespace in NAMESPACES {
            let mut service = read("httpbin-service")?;
            service["metadata"]["namespace"] = namespace.into();
            if self.way == Way::Iptables {
                service["spec"]["ports"][0]["targetPort"] = APPLICATION.into();
            }
            self.node.service(&service)?;
        }
        Ok(Mesh { servers: self.both("httpbin").await?, clients: self.both("sleep").await? })
    }

    /// Starts a pod of this name in each namespace at the same time.
    async fn both(&self, name: &str) -> Result<Vec<RunningPod>, Failure> {
        let [first, second] = NAMESPACES.map(|namespace| self.manifest(name, namespace));
        let (first, second) = (first?, second?);
        let pods = tokio::try_join!(self.node.run(&first), self.node.run(&second))?;
        Ok(<[_; 2]>::from(pods).into())
    }

    /// The pod as the API server has it.
    pub(crate) fn manifest(&self, name: &str, namespace: &str) -> Result<Value, Failure> {
        let mut pod = read(name)?;
        pod["metadata"]["namespace"] = namespace.into();
        if self.way == Way::Iptables {
            pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeInboundPorts"] = "*".into();
            // Nobody tells the application of the sidecar.
            pod["spec"]["containers"][0]["env"] = json!([]);
        }
        Ok(pod)
    }

    /// After its pods: no container, no namespace and no mount; and of the node itself nothing either.
    pub(crate) async fn leaves_nothing(self) -> testkit::Result {
        assert_eq!(self.node.containers()?, BTreeSet::new());
        let deadline = Instant::now() + PATIENCE;
        while self.node.joined()? > 0 {
            assert!(Instant::now() < deadline, "the network namespace of a pod is still there");
            sleep(POLL).await;
        }
        let path = self.scratch.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").or_fail("read the mounts")?;
        assert_eq!(mounts.lines().find(|line| line.contains(&path)), None, "a volume is still mounted");
        let own = self.node.name().to_owned();
        drop(self.ca);
        drop(self.node);
        assert_eq!(podman(&["ps", "--all", "--quiet", "--filter", &format!("name=^{own}$")])?, "", "the node's own");
        drop(self.images);
        Ok(())
    }
}

/// The images of the shim, of Envoy, and of the applications.
pub(crate) struct PodImages {
    shim: Images,
    envoy: ProgramImage,
    applications: ProgramImage,
}

impl PodImages {
    /// Built by the first test that needs them and removed by the last.
    fn shared() -> Result<Arc<Self>, Failure> {
        static SHARED: Mutex<Weak<PodImages>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(images) = shared.upgrade() {
            return Ok(images);
        }
        let scratch = Scratch::new("pods")?;
        let images = Arc::new(Self {
            shim: Images::build(None)?,
            envoy: ProgramImage::envoy(scratch.path())?,
            applications: ProgramImage::applications(scratch.path())?,
        });
        *shared = Arc::downgrade(&images);
        Ok(images)
    }
}

fn read(name: &str) -> Result<Value, Failure> {
    let path = workspace().join(Path::new("tests/containers/pods").join(format!("{name}.json")));
    let text = fs::read_to_string(&path).or_fail(format!("read {}", path.display()))?;
    serde_json::from_str(&text).or_fail(format!("read {}", path.display()))
}

/// Four pods.
pub(crate) struct Mesh {
    /// Those named `sleep`.
    pub(crate) clients: Vec<RunningPod>,
    /// Those named `httpbin`.
    pub(crate) servers: Vec<RunningPod>,
}

impl Mesh {
    pub(crate) fn pods(&self) -> impl Iterator<Item = &RunningPod> {
        self.clients.iter().chain(&self.servers)
    }

    pub(crate) fn into_pods(self) -> impl Iterator<Item = RunningPod> {
        self.clients.into_iter().chain(self.servers)
    }

    /// The application of each `sleep` calls each `httpbin`, which tells whom its sidecar has let in.
    pub(crate) async fn calls(&self) -> testkit::Result {
        for client in &self.clients {
            for server in &self.servers {
                let url = format!("http://{}:8000/headers", server.name());
                let output = client.exec("sleep", &["/usr/bin/curl", "--include", &url]).await?;
                let answer = output.lines.join("\n");
                let explain = |what: &str| client.explain(server.explain(Failure::new(format!("{what}: {answer}"))));
                let status = output.lines.first().and_then(|line| line.split(' ').nth(1));
                println!("{} to {}: {}", client.name(), server.name(), status.unwrap_or("no answer"));
                if status != Some("200") {
                    return Err(explain("the call did not succeed"));
                }
                let (account, namespace) =
                    client.name().split_once('.').map(|(a, n)| (a.to_owned(), n.to_owned())).unwrap_or_default();
                let caller = format!("URI={}", spiffe_id(&namespace, &account));
                let callee = server.name();
                let (account, namespace) = callee.split_once('.').unwrap_or_default();
                let callee = format!("By={}", spiffe_id(namespace, account));
                if !answer.contains(&caller) || !answer.contains(&callee) {
                    return Err(explain(&format!("it was not told of {caller} and {callee}")));
                }
            }
        }
        Ok(())
    }
}
