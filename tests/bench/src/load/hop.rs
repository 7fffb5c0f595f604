use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL, Workload,
    envoy::{ADMIN_SOCKET, Admin, Bootstrap, SdsTransport, Upstream},
    httpbin::Httpbin,
    port::Reservation,
};
use tokio::runtime::{Builder, Runtime};

use super::way::{Source, Way};
use crate::{
    agent::{Launch, Running},
    ground::Ground,
};

/// How a restarted Envoy lets the old one end, in seconds.
const DRAIN: &str = "2";
const PARENT_ENDS: &str = "3";
/// How long the application's thread sleeps between two looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Where Linux keeps what two Envoys share in a hot restart.
const SHARED_MEMORY: &str = "/dev/shm";

/// The application, on a thread of its own.
pub(super) struct Application {
    address: SocketAddr,
    end: Arc<AtomicBool>,
}

impl Application {
    pub(super) fn start() -> Result<Self, Failure> {
        let end = Arc::new(AtomicBool::new(false));
        let (started, start) = mpsc::channel();
        let ended = Arc::clone(&end);
        thread::spawn(move || {
            let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let httpbin = Httpbin::start().await;
                let _ = started.send(httpbin.as_ref().map(Httpbin::address).map_err(ToString::to_string));
                while !ended.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK).await;
                }
            });
        });
        let address = start.recv().or_fail("start the application")?.or_fail("start the application")?;
        Ok(Self { address, end })
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// A client's Envoy and a server's.
pub(super) struct Hop<'a> {
    // Fields drop in this order: Envoys end before their shims.
    client: Sidecar<'a>,
    server: Sidecar<'a>,
    /// What client's Envoys had counted that have been replaced: the new one begins at 0.
    replaced: (f64, f64),
}

/// One Envoy, possibly with predecessors that still drain, and where its certificates come from.
struct Sidecar<'a> {
    envoys: Vec<Running>,
    source: Source,
    pod: Workload,
    way: Way,
    ground: &'a Ground,
    base: Option<u32>,
    epoch: u32,
    port: Reservation,
}

impl<'a> Hop<'a> {
    /// Starts both and waits until they have their certificates.
    pub(super) fn start(
        way: Way,
        ground: &'a Ground,
        application: &Application,
        runtime: &Runtime,
    ) -> Result<Self, Failure> {
        let (client_pod, server_pod) = (ground.pod_of("foo", "sleep")?, ground.pod_of("foo", "httpbin")?);
        let allowed = [client_pod.spiffe_id()];
        let listen = |bootstrap: Bootstrap| bootstrap.inbound(application.address, &allowed);
        let upstream = server_pod.spiffe_id();
        let server = Sidecar::start(way, ground, server_pod, listen, runtime)?;
        let upstream = Upstream { host: "httpbin.foo".to_owned(), address: server.address(), spiffe_id: upstream };
        let listen = |bootstrap: Bootstrap| bootstrap.outbound(std::slice::from_ref(&upstream));
        let client = Sidecar::start(way, ground, client_pod, listen, runtime)?;
        Ok(Self { client, server, replaced: (0.0, 0.0) })
    }

    /// Where requests go.
    pub(super) fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// A file of this name that goes away with the run.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.client.pod.path().join(name)
    }

    /// Gives both a new certificate, as their way has it.
    pub(super) fn rotate(&mut self, runtime: &Runtime) -> Result<(), Failure> {
        if self.client.way == Way::Restart {
            self.replaced = self.counters(runtime)?;
        }
        self.server.rotate()?;
        self.client.rotate()
    }

    /// Handshakes between the two so far, and requests that were lost with their connection.
    pub(super) fn counters(&self, runtime: &Runtime) -> Result<(f64, f64), Failure> {
        let stats = runtime.block_on(self.client.admin().stats("cluster.httpbin.foo."))?;
        let value = |name: &str| stats.iter().find(|(known, _)| known.ends_with(name)).map_or(0.0, |(_, v)| *v as f64);
        let (handshakes, lost) = self.replaced;
        Ok((handshakes + value("ssl.handshake"), lost + value("upstream_cx_destroy_with_active_rq")))
    }

    /// Adds what both said to a failure.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        let envoys = self.client.envoys.iter().chain(&self.server.envoys);
        envoys.fold(failure, |failure, envoy| envoy.explain(failure))
    }
}

impl<'a> Sidecar<'a> {
    fn start(
        way: Way,
        ground: &'a Ground,
        pod: Workload,
        listen: impl FnOnce(Bootstrap) -> Bootstrap,
        runtime: &Runtime,
    ) -> Result<Self, Failure> {
        let source = Source::start(way, ground, &pod)?;
        let port = Reservation::new().or_fail("reserve a port")?;
        let bootstrap = listen(Bootstrap::new(&pod.name(), SdsTransport::EnvoyGrpc).port(port.port()));
        let mut bootstrap = bootstrap.build();
        keep_connections(&mut bootstrap);
        // In a hot restart, counters of the old process reach the new one as often as this.
        bootstrap["stats_flush_interval"] = json!("0.2s");
        way.apply(&mut bootstrap);
        fs::write(pod.path().join("envoy.json"), bootstrap.to_string()).or_fail("write Envoy's configuration")?;
        let mut sidecar = Self { envoys: Vec::new(), source, pod, way, ground, base: None, epoch: 0, port };
        sidecar.launch()?;
        sidecar.wait_ready(runtime)?;
        Ok(sidecar)
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.port()))
    }

    fn admin(&self) -> Admin {
        Admin::at(&self.pod.path().join(ADMIN_SOCKET))
    }

    fn rotate(&mut self) -> Result<(), Failure> {
        if self.way == Way::None {
            return Ok(());
        }
        self.source.rotate(self.ground, &self.pod)?;
        if self.way == Way::Restart {
            self.epoch += 1;
            self.launch()?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), Failure> {
        let mut arguments = vec!["-c", "envoy.json", "--concurrency", "1", "--log-level", "warning"];
        let (base, epoch);
        if self.way == Way::Restart {
            self.base = self.base.or_else(|| Some(u32::from(self.port.port())));
            (base, epoch) = (self.base.unwrap_or_default().to_string(), self.epoch.to_string());
            arguments.extend(["--base-id", &base, "--restart-epoch", &epoch]);
            arguments.extend(["--drain-time-s", DRAIN, "--parent-shutdown-time-s", PARENT_ENDS]);
        } else {
            arguments.push("--disable-hot-restart");
        }
        // Those that have drained are gone by now.
        self.envoys.retain_mut(|envoy| !envoy.ended());
        let name = format!("envoy-{}", self.epoch);
        self.envoys.push(Launch::envoy(&name, self.pod.path(), &arguments)?.start()?);
        Ok(())
    }

    fn wait_ready(&mut self, runtime: &Runtime) -> Result<(), Failure> {
        let (admin, deadline) = (self.admin(), Instant::now() + PATIENCE);
        while !runtime.block_on(admin.is_ready()) {
            let envoy = self.envoys.last_mut();
            if Instant::now() > deadline || envoy.is_some_and(Running::ended) {
                let failure = Failure::new(format!("the Envoy of {} does not get ready", self.pod.name()));
                return Err(self.envoys.iter().fold(failure, |failure, envoy| envoy.explain(failure)));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        self.envoys.clear();
        if let Some(base) = self.base {
            // Envoy leaves it for a successor; its name has the base id with a digit behind it.
            let _ = fs::remove_file(PathBuf::from(SHARED_MEMORY).join(format!("envoy_shared_memory_{base}0")));
        }
    }
}

/// The scene's Envoys make a connection for each request; these keep theirs, as Envoys do unless they are told.
fn keep_connections(bootstrap: &mut Value) {
    for cluster in bootstrap["static_resources"]["clusters"].as_array_mut().into_iter().flatten() {
        let options = &mut cluster["typed_extension_protocol_options"];
        for options in options.as_object_mut().into_iter().flat_map(|options| options.values_mut()) {
            if options.get("common_http_protocol_options").is_some() {
                options["common_http_protocol_options"] = json!({});
            }
        }
    }
}
