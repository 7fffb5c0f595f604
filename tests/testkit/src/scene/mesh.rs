use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use development_ca::{ProjectedVolume, TokenRequest};
use tokio::net::TcpStream;

use super::{narrator::Narrator, world::World};
use crate::{
    Failure, OrFail, Workload,
    envoy::{ADMIN_SOCKET, Bootstrap, Envoy, SdsTransport, Upstream},
    http::Connection,
    httpbin::Httpbin,
    shim::Shim,
    workload::{TOKEN_FILE, spiffe_id},
};

/// Host name under which the sleep sidecars know a server that is not who they expect.
pub(super) const IMPOSTOR: &str = "impostor.foo";
const NAMESPACES: [&str; 2] = ["foo", "bar"];
/// Where Envoy finds its token when the shim must not: out of the shim's sight, whose path is fixed.
const ENVOY_TOKEN_DIRECTORY: &str = "./var/run/secrets/envoy-token";

/// Who reads the service-account token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenSource {
    /// The shim, from the projected volume.
    File,
    /// Envoy, which sends it with each SDS stream.
    Request,
}

/// A workload with its two processes, and its application if it is a server.
pub(super) struct Sidecar {
    pub(super) workload: Workload,
    pub(super) shim: Shim,
    pub(super) envoy: Envoy,
    /// Port of the listener that this sidecar is there for: `inbound` of httpbin's, `outbound` of sleep's.
    pub(super) port: u16,
    _application: Option<Httpbin>,
    _envoy_token: Option<ProjectedVolume>,
}

/// Four sidecars.
pub(super) struct Mesh {
    pub(super) clients: Vec<Sidecar>,
    pub(super) servers: Vec<Sidecar>,
}

impl Mesh {
    /// Starts all workloads below `directory` and waits until every Envoy has its certificate.
    pub(super) async fn start(world: &World, directory: &Path, source: TokenSource) -> Result<Self, Failure> {
        let mut servers = Vec::new();
        let mut clients = Vec::new();
        for namespace in NAMESPACES {
            servers.push(Sidecar::server(world, directory, namespace, source).await?);
        }
        for namespace in NAMESPACES {
            clients.push(Sidecar::client(world, directory, namespace, source, &servers).await?);
        }
        Ok(Self { clients, servers })
    }

    /// All sidecars, clients first.
    pub(super) fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.clients.iter().chain(&self.servers)
    }

    /// All sidecars, clients first.
    pub(super) fn sidecars_mut(&mut self) -> impl Iterator<Item = &mut Sidecar> {
        self.clients.iter_mut().chain(&mut self.servers)
    }

    /// Every client calls every server through both of their sidecars.
    pub(super) async fn show_calls(&self, narrator: &mut Narrator) -> Result<(), Failure> {
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
                narrator.say(format!("{call}: {}", answer.status));
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
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
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
    async fn server(world: &World, directory: &Path, namespace: &str, source: TokenSource) -> Result<Self, Failure> {
        let application = Httpbin::start().await?;
        let clients = NAMESPACES.map(|namespace| spiffe_id(namespace, "sleep"));
        let address = application.address();
        let listen = |bootstrap: Bootstrap| bootstrap.inbound(address, &clients);
        let mut sidecar = Self::start(world, directory, namespace, "httpbin", source, "inbound", listen).await?;
        sidecar._application = Some(application);
        Ok(sidecar)
    }

    async fn client(
        world: &World,
        directory: &Path,
        namespace: &str,
        source: TokenSource,
        servers: &[Sidecar],
    ) -> Result<Self, Failure> {
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
        Self::start(world, directory, namespace, "sleep", source, "outbound", listen).await
    }

    async fn start(
        world: &World,
        directory: &Path,
        namespace: &str,
        service_account: &str,
        source: TokenSource,
        listener: &str,
        listen: impl FnOnce(Bootstrap) -> Bootstrap,
    ) -> Result<Self, Failure> {
        let name = format!("{service_account}.{namespace}");
        let directory = directory.join(&name);
        let workload = Workload::create(&directory, namespace, service_account, &world.ca.root_pem());
        let mut workload = workload.or_fail(format!("create {}", directory.display()))?;
        let token = world.tokens.mint(&TokenRequest::new(namespace, service_account));
        let shim = Shim::for_workload(&workload, world.ca.address());
        let (mut shim, transport, envoy_token) = match source {
            TokenSource::File => {
                workload.write_token(&token).or_fail("write the token")?;
                (shim.start()?, SdsTransport::EnvoyGrpc, None)
            }
            TokenSource::Request => {
                let volume = directory.join(ENVOY_TOKEN_DIRECTORY);
                let volume = ProjectedVolume::create(&volume, &[(TOKEN_FILE, &token)]).or_fail("write the token")?;
                let token_file = format!("{ENVOY_TOKEN_DIRECTORY}/{TOKEN_FILE}");
                // It is told neither a token nor an identity: both come with each request.
                let shim = shim.without("POD_NAMESPACE").without("SERVICE_ACCOUNT");
                let shim = shim.env("SDS_SHIM_TOKEN_SOURCE", "request").start()?;
                (shim, SdsTransport::GoogleGrpc { token_file }, Some(volume))
            }
        };
        shim.connect().await?;
        let bootstrap = listen(Bootstrap::new(&name, transport)).build();
        let mut envoy = Envoy::start(&format!("Envoy of {name}"), &directory, &bootstrap)?;
        let ready = envoy.wait_ready().await;
        ready.map_err(|failure| shim.explain(failure))?;
        let port = envoy.admin().listener_port(listener).await.map_err(|failure| envoy.explain(failure))?;
        Ok(Self { workload, shim, envoy, port, _application: None, _envoy_token: envoy_token })
    }

    pub(super) fn name(&self) -> String {
        self.workload.name()
    }

    /// Its main listener.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A plain TCP connection to its main listener.
    pub(super) async fn dial(&self) -> Result<TcpStream, Failure> {
        TcpStream::connect(self.address()).await.or_fail(format!("connect to the sidecar of {}", self.name()))
    }

    /// A plain HTTP connection to its main listener, as the application beside a client's sidecar has it.
    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        Connection::new(self.dial().await?).await
    }

    /// Adds the logs of both processes.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        self.envoy.explain(self.shim.explain(failure))
    }

    fn upstream(&self) -> Upstream {
        Upstream { host: self.name(), address: self.address(), spiffe_id: self.workload.spiffe_id() }
    }
}
