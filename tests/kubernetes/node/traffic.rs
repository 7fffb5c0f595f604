//! Mutual TLS with a pod, one handshake after the other.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use openssl::x509::X509Ref;
use testkit::{Failure, OrFail, POLL, development_ca::Issued, http, tls};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::mesh::{HTTPBIN, Mesh, address};

/// How long one handshake and its request may take.
const LONGEST: Duration = Duration::from_secs(10);

/// Handshakes that go on until they are stopped.
pub(crate) struct Traffic {
    stop: oneshot::Sender<()>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Traffic {
    /// With httpbin's Envoy, past its service: so that no other pod answers.
    pub(crate) async fn start(mesh: &Mesh) -> Result<Self, Failure> {
        Ok(Self::with(mesh, server(mesh).await?))
    }

    /// With whichever pod of httpbin's the Service leads to.
    pub(crate) async fn through_service(mesh: &Mesh) -> Result<Self, Failure> {
        let service = mesh.cluster.get(&["service", HTTPBIN.1, "-n", HTTPBIN.0]).await?;
        let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        let address: IpAddr = address.parse().or_fail(format!("read the address {address:?}"))?;
        Ok(Self::with(mesh, (address, 8000).into()))
    }

    fn with(mesh: &Mesh, server: SocketAddr) -> Self {
        let (client, root) = mesh.client();
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut handshakes, mut failures) = (0, Vec::new());
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                handshakes += 1;
                if let Err(failure) = call(server, &client, &root).await {
                    failures.push(failure.what().to_owned());
                }
                sleep(POLL).await;
            }
            (handshakes, failures)
        });
        Self { stop, task }
    }

    /// How many there were; it is an error when one failed.
    pub(crate) async fn stop(self) -> Result<usize, Failure> {
        let _ = self.stop.send(());
        let (handshakes, failures) = self.task.await.or_fail("await the traffic")?;
        match failures.as_slice() {
            [] => Ok(handshakes),
            [first, ..] => Err(Failure::new(format!("{} of {handshakes} failed, first: {first}", failures.len()))),
        }
    }
}

/// Calls until the answer is as wanted, and says how long that took.
pub(crate) async fn until(mesh: &Mesh, answered: bool, bound: Duration) -> Result<Duration, Failure> {
    until_for(mesh, &mesh.client().0, answered, bound).await
}

/// The same for somebody else than `sleep`.
pub(crate) async fn until_for(
    mesh: &Mesh,
    client: &Issued,
    answered: bool,
    bound: Duration,
) -> Result<Duration, Failure> {
    let (server, (_, root)) = (server(mesh).await?, mesh.client());
    let look = async || Ok((call(server, client, &root).await.is_ok() == answered).then_some(()));
    let what = if answered { "calls answered" } else { "calls refused" };
    mesh.eventually(what, bound, look).await.map(|((), took)| took)
}

/// The serial number of the certificate that it presents, in hexadecimal.
pub(crate) async fn presented(mesh: &Mesh) -> Result<String, Failure> {
    let (server, (client, root)) = (server(mesh).await?, mesh.client());
    let stream = TcpStream::connect(server).await.or_fail("connect")?;
    let stream = tls::connect(stream, &root, Some(&client)).await?;
    let certificate = stream.ssl().peer_certificate().ok_or_else(|| Failure::new("it presents no certificate"))?;
    serial(&certificate)
}

/// Of a certificate, in hexadecimal.
pub(crate) fn serial(certificate: &X509Ref) -> Result<String, Failure> {
    let number = certificate.serial_number().to_bn().and_then(|number| number.to_hex_str());
    Ok(number.or_fail("read a serial number")?.to_string())
}

async fn server(mesh: &Mesh) -> Result<SocketAddr, Failure> {
    Ok((address(&mesh.pod(HTTPBIN).await?)?, 15006).into())
}

pub(crate) async fn call(server: SocketAddr, client: &Issued, root: &str) -> testkit::Result {
    let exchange = async {
        let stream = TcpStream::connect(server).await.or_fail("connect")?;
        let stream = tls::connect(stream, root, Some(client)).await?;
        http::get(stream, "httpbin", "/ip").await
    };
    let answer = timeout(LONGEST, exchange).await.or_fail(format!("no answer within {LONGEST:?}"))??;
    match answer.status {
        200 => Ok(()),
        other => Err(Failure::new(format!("answered with {other}"))),
    }
}
