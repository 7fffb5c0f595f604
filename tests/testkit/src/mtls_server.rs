//! A server with its shim and its Envoy, at whose mutual-TLS port peers of all kinds knock.

use std::{future::Future, net::Ipv4Addr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{Issued, Leaf, Pki},
    envoy::{Bootstrap, Envoy, SdsTransport},
    fixture::Site,
    http,
    httpbin::Httpbin,
    port::Reservation,
    shim::{Shim, ShimBuilder},
    tls,
};

/// Who knocks, where there is one who may come in.
pub const PEER: &str = "spiffe://cluster.local/ns/bar/sa/peer";

/// Its certificate, of this PKI.
pub fn peer(pki: &Pki) -> Issued {
    pki.issue(&Leaf::workload(PEER, Duration::from_secs(3600)))
}

/// The server, whose Envoy asks for the peers' certificates.
pub struct MtlsServer {
    // Processes end before their directory goes.
    /// Its Envoy.
    pub envoy: Envoy,
    /// Its shim.
    pub shim: Shim,
    /// Its pod.
    pub scene: Site,
    reservation: Reservation,
    _application: Httpbin,
}

impl MtlsServer {
    /// Waits until Envoy has its secrets; peers with these SPIFFE IDs may come in.
    pub async fn start(
        scene: Site,
        allowed: &[&str],
        edit: impl FnOnce(ShimBuilder) -> ShimBuilder,
    ) -> Result<Self, Failure> {
        let mut server = Self::begin(scene, allowed, edit).await?;
        server.ready().await?;
        Ok(server)
    }

    /// Where peers knock.
    pub fn port(&self) -> u16 {
        self.reservation.port()
    }

    /// Ends both processes.
    pub fn end(self) -> Site {
        self.scene
    }

    /// Waits until Envoy has its secrets.
    pub async fn ready(&mut self) -> crate::Result {
        self.envoy.wait_ready().await.map_err(|failure| self.shim.explain(failure))
    }

    /// The same without waiting.
    pub async fn begin(
        scene: Site,
        allowed: &[&str],
        edit: impl FnOnce(ShimBuilder) -> ShimBuilder,
    ) -> Result<Self, Failure> {
        let application = Httpbin::start().await?;
        let reservation = Reservation::new().or_fail("reserve a port")?;
        let mut shim = edit(scene.shim()).start()?;
        shim.connect().await?;
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        let bootstrap = Bootstrap::new("server", SdsTransport::EnvoyGrpc).port(reservation.port());
        let bootstrap = bootstrap.inbound(application.address(), &allowed).build();
        let envoy = Envoy::start("Envoy of the server", scene.workload.path(), &bootstrap)?;
        Ok(Self { envoy, shim, scene, reservation, _application: application })
    }

    /// Whether a peer with this certificate gets an answer. It does not look at the server's own.
    pub async fn lets_in(&self, peer: &Issued) -> Result<bool, Failure> {
        // Envoy listens once it has its secrets.
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.reservation.port())).await else {
            return Ok(false);
        };
        let roots = self.scene.pki.root_pem();
        let answer = match tls::connect(stream, &roots, Some(peer)).await {
            Ok(stream) => http::get(stream, "httpbin", "/ip").await,
            Err(failure) => Err(failure),
        };
        // What a refusal looks like depends on who is faster.
        Ok(answer.is_ok_and(|answer| answer.status == 200))
    }

    /// Waits until that is so.
    pub async fn until<F: Future<Output = Result<bool, Failure>>>(
        &self,
        what: &str,
        condition: impl Fn() -> F,
    ) -> crate::Result {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await? {
            if Instant::now() > deadline {
                return Err(self.envoy.explain(self.shim.failure(format!("it never came true that {what}"))));
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}
