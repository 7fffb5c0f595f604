use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use development_ca::ProjectedVolume;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{narrator::Narrator, world::World};
use crate::{
    Failure, OrFail, Workload,
    envoy::{ADMIN_SOCKET, Bootstrap, Envoy, SdsTransport, Upstream},
    http::Connection,
    httpbin::Httpbin,
    port::Reservation,
    shim::{Shim, ShimBuilder},
    workload::{TOKEN_FILE, spiffe_id},
};

/// Host name under which the sleep sidecars know a server that is not who they expect.
pub(super) const IMPOSTOR: &str = "impostor.foo";
pub(super) const NAMESPACES: [&str; 2] = ["foo", "bar"];
/// Where Envoy finds its token when the shim must not: out of the shim's sight, whose path is fixed.
const ENVOY_TOKEN_DIRECTORY: &str = "./var/run/secrets/envoy-token";

/// Who reads the service-account token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// The shim, from the projected volume.
    File,
    /// Envoy, which sends it with each SDS stream.
    Request,
}

/// What all sidecars are started from.
struct Setting<'a> {
    world: &'a World,
    directory: &'a Path,
    source: TokenSource,
    edit: &'a dyn Fn(ShimBuilder) -> ShimBuilder,
    finish: &'a dyn Fn(&Bootstrap) -> Value,
}

/// A workload with its two processes, and its application if it is a server.
pub struct Sidecar {
    /// Its directory and names.
    pub workload: Workload,
    /// Its shim.
    pub shim: Shim,
    /// Its Envoy.
    pub envoy: Envoy,
    /// Port of the listener that this sidecar is there for: `inbound` of httpbin's, `outbound` of sleep's.
    pub port: u16,
    shim_builder: ShimBuilder,
    bootstrap: Value,
    _reservation: Reservation,
    _application: Option<Httpbin>,
    _envoy_token: Option<ProjectedVolume>,
}

/// Four sidecars.
pub struct Mesh {
    /// Those named `sleep`.
    pub clients: Vec<Sidecar>,
    /// Those named `httpbin`.
    pub servers: Vec<Sidecar>,
}

impl Mesh {
    /// Starts all workloads below `directory`, their shims as `edit` has them, and waits until every Envoy has its
    /// certificate.
    pub async fn start(
        world: &World,
        directory: &Path,
        source: TokenSource,
        edit: impl Fn(ShimBuilder) -> ShimBuilder,
    ) -> Result<Self, Failure> {
        Self::start_with(&Setting { world, directory, source, edit: &edit, finish: &Bootstrap::build }).await
    }

    /// The same, with the configuration of each Envoy as `finish` makes it.
    pub async fn start_finished(
        world: &World,
        directory: &Path,
        edit: impl Fn(ShimBuilder) -> ShimBuilder,
        finish: impl Fn(&Bootstrap) -> Value,
    ) -> Result<Self, Failure> {
        let source = TokenSource::File;
        Self::start_with(&Setting { world, directory, source, edit: &edit, finish: &finish }).await
    }

    /// Starts all workloads below `directory`, with the configuration of each Envoy as `finish` makes it.
    pub(super) async fn start_discovered(
        world: &World,
        directory: &Path,
        finish: &dyn Fn(&Bootstrap) -> Value,
    ) -> Result<Self, Failure> {
        let source = TokenSource::File;
        Self::start_with(&Setting { world, directory, source, edit: &|shim| shim, finish }).await
    }

    async fn start_with(setting: &Setting<'_>) -> Result<Self, Failure> {
        let mut servers = Vec::new();
        let mut clients = Vec::new();
        for namespace in NAMESPACES {
            servers.push(Sidecar::server(setting, namespace).await?);
        }
        for namespace in NAMESPACES {
            clients.push(Sidecar::client(setting, namespace, &servers).await?);
        }
        Ok(Self { clients, servers })
    }

    /// All sidecars, clients first.
    pub fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.clients.iter().chain(&self.servers)
    }

    /// All sidecars, clients first.
    pub fn sidecars_mut(&mut self) -> impl Iterator<Item = &mut Sidecar> {
        self.clients.iter_mut().chain(&mut self.servers)
    }

    pub(super) async fn show_calls(&self, narrator: &mut Narrator) -> crate::Result {
        self.call_all(|line| narrator.say(line)).await
    }

    /// Every client calls every server through both of their sidecars; `say` gets a line for each call that was
    /// answered with 200.
    pub async fn call_all(&self, mut say: impl FnMut(String)) -> crate::Result {
        for client in &self.clients {
            for server in &self.servers {
                let call = format!("{} to {}", client.name(), server.name());
                let explain = |failure: Failure| client.explain(server.explain(failure.context(&call)));
                let answer = match client.connect().await {
                    Ok(mut connection) => connection.get(&server.name(), "/ip").await,
                    Err(failure) => Err(failure),
                };
                let answer = answer.map_err(explain)?;
                if answer.status != 200 || !answer.text().contains("\"origin\"") {
                    return Err(explain(Failure::new(format!("{}: {}", answer.status, answer.text()))));
                }
                say(format!("{call}: {}", answer.status));
            }
        }
        Ok(())
    }

    /// How to talk to the mesh by hand.
    pub(super) fn instructions(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for client in &self.clients {
            for server in &self.servers {
                let (from, to, port) = (client.name(), server.name(), client.port);
                lines.push(format!("{from} to {to}:  curl -H 'Host: {to}' http://127.0.0.1:{port}/ip"));
            }
        }
        for sidecar in self.sidecars() {
            // From within the directory, because curl too is bound to the length of a socket address.
            lines.push(format!(
                "{} (shim pid {}, Envoy pid {}):  cd {} && curl --unix-socket {ADMIN_SOCKET} http://envoy/certs",
                sidecar.name(),
                sidecar.shim.pid(),
                sidecar.envoy.pid(),
                sidecar.workload.path().display()
            ));
        }
        lines
    }

    /// Ends all processes in order: each Envoy before its shim.
    pub async fn stop(mut self) -> crate::Result {
        for sidecar in self.sidecars_mut() {
            sidecar.envoy.terminate().await?;
            let status = sidecar.shim.terminate().await?;
            if !status.success() {
                let name = sidecar.shim.name();
                return Err(sidecar.shim.failure(format!("{name} ended with {status} when it was asked to end")));
            }
        }
        Ok(())
    }
}

impl Sidecar {
    async fn server(setting: &Setting<'_>, namespace: &str) -> Result<Self, Failure> {
        let application = Httpbin::start().await?;
        let clients = NAMESPACES.map(|namespace| spiffe_id(namespace, "sleep"));
        let address = application.address();
        let listen = |bootstrap: Bootstrap| bootstrap.inbound(address, &clients);
        let mut sidecar = Self::start(setting, namespace, "httpbin", listen).await?;
        sidecar._application = Some(application);
        Ok(sidecar)
    }

    /// The sidecar of the control plane that listens at `application`; it lets in the workloads of the mesh alone.
    pub(super) async fn control_plane(
        world: &World,
        directory: &Path,
        application: SocketAddr,
    ) -> Result<Self, Failure> {
        let source = TokenSource::File;
        let setting = Setting { world, directory, source, edit: &|shim| shim, finish: &Bootstrap::build };
        let allowed: Vec<_> = NAMESPACES
            .into_iter()
            .flat_map(|namespace| ["sleep", "httpbin"].map(|account| spiffe_id(namespace, account)))
            .collect();
        let listen = |bootstrap: Bootstrap| bootstrap.inbound_grpc(application, &allowed);
        Self::start(&setting, "istio-system", "istiod", listen).await
    }

    async fn client(setting: &Setting<'_>, namespace: &str, servers: &[Sidecar]) -> Result<Self, Failure> {
        let mut upstreams: Vec<_> = servers.iter().map(Sidecar::upstream).collect();
        // The address is that of httpbin.bar, the expected identity that of httpbin.foo.
        if let [expected, other] = &upstreams[..] {
            upstreams.push(Upstream {
                host: IMPOSTOR.to_owned(),
                address: other.address,
                spiffe_id: expected.spiffe_id.clone(),
            });
        }
        let listen = |bootstrap: Bootstrap| bootstrap.outbound(&upstreams);
        Self::start(setting, namespace, "sleep", listen).await
    }

    async fn start(
        setting: &Setting<'_>,
        namespace: &str,
        service_account: &str,
        listen: impl FnOnce(Bootstrap) -> Bootstrap,
    ) -> Result<Self, Failure> {
        let Setting { world, directory, source, edit, finish } = *setting;
        let directory = home(directory, namespace, service_account);
        let workload = Workload::create(&directory, namespace, service_account, &world.ca.root_pem());
        let mut workload = workload.or_fail(format!("create {}", directory.display()))?;
        let token = world.token(namespace, service_account);
        let shim_builder = edit(Shim::for_workload(&workload, world.ca.address()));
        let (shim_builder, transport, envoy_token) = match source {
            TokenSource::File => {
                workload.write_token(&token).or_fail("write the token")?;
                (shim_builder, SdsTransport::EnvoyGrpc, None)
            }
            TokenSource::Request => {
                let volume = directory.join(ENVOY_TOKEN_DIRECTORY);
                let volume = ProjectedVolume::create(&volume, &[(TOKEN_FILE, &token)]).or_fail("write the token")?;
                let token_file = format!("{ENVOY_TOKEN_DIRECTORY}/{TOKEN_FILE}");
                // It is told neither a token nor an identity: both come with each request.
                let shim_builder = shim_builder.without("POD_NAMESPACE").without("SERVICE_ACCOUNT");
                let shim_builder = shim_builder.env("SDS_SHIM_TOKEN_SOURCE", "request");
                (shim_builder, SdsTransport::GoogleGrpc { token_file }, Some(volume))
            }
        };
        let mut shim = shim_builder.clone().start()?;
        shim.connect().await?;
        let reservation = Reservation::new().or_fail("reserve a port")?;
        let port = reservation.port();
        let bootstrap = finish(&listen(Bootstrap::new(&workload.name(), transport).port(port)));
        let envoy = launch(&workload, &bootstrap)?;
        let mut sidecar = Self {
            workload,
            shim,
            envoy,
            port,
            shim_builder,
            bootstrap,
            _reservation: reservation,
            _application: None,
            _envoy_token: envoy_token,
        };
        let ready = sidecar.envoy.wait_ready().await;
        ready.map_err(|failure| sidecar.explain(failure))?;
        Ok(sidecar)
    }

    /// Ends the shim and starts another, as `edit` has it from now on, while Envoy goes on.
    pub async fn replace_shim(&mut self, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> crate::Result {
        self.shim.terminate().await?;
        self.shim_builder = edit(self.shim_builder.clone());
        self.restart_shim()
    }

    /// Starts a shim in the place of the one that has ended.
    pub fn restart_shim(&mut self) -> crate::Result {
        self.shim = self.shim_builder.clone().start()?;
        Ok(())
    }

    /// Starts an Envoy, with the same configuration and port, in the place of the one that has ended.
    pub fn restart_envoy(&mut self) -> crate::Result {
        self.envoy = launch(&self.workload, &self.bootstrap)?;
        Ok(())
    }

    /// Ends Envoy and starts another one with this configuration.
    pub(super) async fn replace_envoy(&mut self, edit: impl FnOnce(&mut Value)) -> crate::Result {
        self.envoy.terminate().await?;
        edit(&mut self.bootstrap);
        self.restart_envoy()
    }

    /// Waits until Envoy uses the certificate with this serial number, and no other any more.
    pub async fn wait_for_serial(&mut self, serial: &str) -> crate::Result {
        let admin = self.envoy.admin().clone();
        let used = || async {
            let used = admin.certificates().await?;
            Ok(!used.is_empty() && used.iter().all(|certificate| certificate.serial == serial))
        };
        let waited = self.envoy.wait_until(&format!("the certificate {serial}"), used).await;
        waited.map_err(|failure| self.explain(failure))
    }

    /// `SERVICE_ACCOUNT.NAMESPACE`.
    pub fn name(&self) -> String {
        self.workload.name()
    }

    /// Its main listener.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A plain TCP connection to its main listener.
    pub(super) async fn dial(&self) -> Result<TcpStream, Failure> {
        TcpStream::connect(self.address()).await.or_fail(format!("connect to the sidecar of {}", self.name()))
    }

    /// A plain HTTP connection to its main listener, as the application beside a client's sidecar has it.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        Connection::new(self.dial().await?).await
    }

    /// Adds the logs of both processes.
    pub fn explain(&self, failure: Failure) -> Failure {
        self.envoy.explain(self.shim.explain(failure))
    }

    pub(super) fn upstream(&self) -> Upstream {
        Upstream { host: self.name(), address: self.address(), spiffe_id: self.workload.spiffe_id() }
    }
}

/// The directory of a workload in a mesh below `directory`.
pub(super) fn home(directory: &Path, namespace: &str, service_account: &str) -> PathBuf {
    directory.join(format!("{service_account}.{namespace}"))
}

fn launch(workload: &Workload, bootstrap: &Value) -> Result<Envoy, Failure> {
    Envoy::start(&format!("Envoy of {}", workload.name()), workload.path(), bootstrap)
}
