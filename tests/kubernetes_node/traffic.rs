//! Mutual TLS with a pod, one handshake after the other.

use std::{net::SocketAddr, time::Duration};

use testkit::{Failure, OrFail, POLL, development_ca::Issued, http, tls};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::mesh::{HTTPBIN, Mesh};

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
        let (server, (client, root)) = (server(mesh).await?, mesh.client());
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
        Ok(Self { stop, task })
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
    let (server, (client, root)) = (server(mesh).await?, mesh.client());
    let look = async || Ok((call(server, &client, &root).await.is_ok() == answered).then_some(()));
    let what = if answered { "calls answered" } else { "calls refused" };
    mesh.eventually(what, bound, look).await.map(|((), took)| took)
}

async fn server(mesh: &Mesh) -> Result<SocketAddr, Failure> {
    let pod = mesh.pod(HTTPBIN).await?;
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    Ok((address.parse::<std::net::IpAddr>().or_fail(format!("read the address {address:?}"))?, 15006).into())
}

async fn call(server: SocketAddr, client: &Issued, root: &str) -> Result<(), Failure> {
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
